"""The settings file and ``--check``: every fault with its place, exit 78."""

import sys
from pathlib import Path

import pytest

from daemons.gateway import settings
from daemons.gateway.__main__ import main
from daemons.runtime.settings import ConfigError
from tests.support.gateway import write_key

GOOD = 'engines: [{name: a, url: "unix:///run/a/api.sock", models: [m]}]\n'


def _write(folder: Path, text: str) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return path


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    loaded = settings.load(_write(tmp_path, GOOD))
    assert loaded.keys == tmp_path / "keys.d"
    assert loaded.ledger == tmp_path / "ledger.db"
    assert loaded.ready_wait == 30


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "engines: this key is required"),
        ("engines: []\n", "engines"),
        (GOOD + "nonsense: 1\n", "nonsense: unknown key"),
        (GOOD.replace("unix:///run/a/api.sock", "ftp://x"), "expected unix:///PATH"),
        (GOOD.replace("unix:///run/a/api.sock", "http://k@x:1"), "api_key_file"),
        (GOOD.replace("[m]", "[]"), "models"),
        (
            "engines: [{name: a, url: 'http://x:1', models: [m]}, {name: a, url: 'http://x:1', models: [m]}]",
            "names must differ",
        ),
        (GOOD + "timeouts: {connect: 0}\n", "timeouts.connect"),
        (GOOD + "listen: {port: 99999}\n", "listen.port"),
        ("engines: [\n", "not valid YAML"),
    ],
)
def test_faults_are_told_with_their_place(
    tmp_path: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        settings.load(path)
    assert told in str(caught.value)
    assert main(["--config", str(path), "--check"]) == 78
    assert str(path) in capsys.readouterr().err


def test_check_reads_the_keys_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path, GOOD)
    write_key(tmp_path / "keys.d", "good")
    assert main(["--config", str(path), "--check"]) == 0
    assert "1 engine, 1 key\n" in capsys.readouterr().out
    (tmp_path / "keys.d" / "bad.yaml").write_text(
        "name: bad\nsecrets: [plain]\nexpires: 2027-01-01T00:00:00\n"
    )
    write_key(tmp_path / "keys.d", "twin").write_text("name: good\nsecrets: []\n")
    assert main(["--config", str(path), "--check"]) == 78
    told = capsys.readouterr().err
    assert "bad.yaml" in told
    assert "twin.yaml" in told
    assert "plain" not in told


def test_check_says_that_the_client_of_shared_limits_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_key(tmp_path / "keys.d", "good")
    path = _write(tmp_path, GOOD + "shared_limits: {url: 'redis://127.0.0.1:9/0'}\n")
    assert main(["--config", str(path), "--check"]) == 0
    monkeypatch.setitem(sys.modules, "redis", None)
    assert main(["--config", str(path), "--check"]) == 78
    assert "requirements/redis.txt" in capsys.readouterr().err


def test_all_bodies_together_hold_at_least_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_key(tmp_path / "keys.d", "good")
    path = _write(tmp_path, GOOD + "limits: {body_bytes: 2000, bodies_bytes: 1000}\n")
    assert main(["--config", str(path), "--check"]) == 78
    assert "bodies_bytes: must hold at least one body" in capsys.readouterr().err
