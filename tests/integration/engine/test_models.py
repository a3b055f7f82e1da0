"""Downloads from a real HTTP mirror."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from daemons.engine.models.hub import Hub, Unreachable
from daemons.engine.models.store import MANIFEST, Store
from daemons.llmctl import models
from daemons.runtime.errors import Fatal
from tests.integration.engine.mirror import COMMIT, Mirror

WEIGHTS = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    made = Mirror()
    made.files = {
        "config.json": b'{"a": 1}',
        "tokenizer.json": b"{}",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"the same in another format",
        "original/consolidated.00.pth": b"and again",
        "README.md": b"words",
    }
    yield made
    made.close()


@pytest.fixture
def hub(mirror: Mirror) -> Hub:
    return Hub(mirror.url, first_delay=0.01)


def quiet(name: str, done: int, total: int) -> None:
    assert 0 <= done <= total, name


def test_only_what_serving_needs_at_the_exact_revision(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    store = Store(tmp_path)
    manifest = hub.download("org/tiny", None, store, lambda *progress: told.append(progress))
    assert manifest.revision == COMMIT
    assert set(manifest.files) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (store.path("org/tiny") / "model.safetensors").read_bytes() == WEIGHTS
    assert told[-1] == ("", told[-1][2], told[-1][2])
    assert store.find("org/tiny", None) == store.find("org/tiny", COMMIT) == tmp_path / "org--tiny"
    assert store.find("org/tiny", "v2") is None
    served = mirror.served
    hub.download("org/tiny", None, store, quiet)
    assert mirror.served == served


def test_an_interrupted_download_goes_on_where_it_was(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    # The library takes 10 MiB at a time: what is to be resumed must be larger.
    large = WEIGHTS * 16
    mirror.files["model.safetensors"] = large
    mirror.cut = 1
    hub.download("org/tiny", None, Store(tmp_path), quiet)
    assert (tmp_path / "org--tiny" / "model.safetensors").read_bytes() == large
    assert mirror.ranges == [f"bytes={10 << 20}-"]


def test_a_line_that_always_breaks_is_one_clear_error_and_no_model(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cut = 1000
    store = Store(tmp_path)
    with pytest.raises(Unreachable, match="org/tiny"):
        Hub(mirror.url, attempts=1).download("org/tiny", None, store, quiet)
    assert store.find("org/tiny", None) is None


def test_damaged_bytes_are_fetched_again(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    mirror.corrupt = 1
    hub.download("org/tiny", None, Store(tmp_path), quiet)
    assert (tmp_path / "org--tiny" / "model.safetensors").read_bytes() == WEIGHTS
    mirror.corrupt = 100
    with pytest.raises(Fatal, match=r"model\.safetensors arrives damaged"):
        hub.download("org/tiny", None, Store(tmp_path / "other"), quiet)


def test_a_slow_line_is_waited_for(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    mirror.delay = 0.02
    hub.download("org/tiny", "main", Store(tmp_path), quiet)
    assert Store(tmp_path).find("org/tiny", "main")


def test_gated_absent_and_unreachable_are_told_apart(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(Fatal, match="there is no model org/other"):
        hub.download("org/other", None, store, quiet)
    with pytest.raises(Fatal, match="has no revision v9"):
        hub.download("org/tiny", "v9", store, quiet)
    with pytest.raises(Fatal, match="is no name of a model"):
        hub.download("a/b/c", None, store, quiet)
    mirror.gated = True
    with pytest.raises(Fatal, match="is gated: accept its licence") as gated:
        hub.download("org/tiny", None, store, quiet)
    assert gated.value.exit_code == 78
    Hub(mirror.url, SecretStr("hf_read")).download("org/tiny", None, store, quiet)
    assert mirror.tokens == {"hf_read"}
    with pytest.raises(Unreachable):
        Hub("http://127.0.0.1:9", first_delay=0.01).download("org/tiny", None, store, quiet)


def test_too_little_space_is_said_before_anything_is_fetched(
    mirror: Mirror, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: argparse.Namespace(free=1 << 20))
    with pytest.raises(Fatal, match=r"needs 0\.0 GiB more and 0\.0 GiB are free"):
        hub.download("org/tiny", None, Store(tmp_path), quiet)
    assert mirror.served == 0


def llmctl(*words: str) -> int:
    parser = argparse.ArgumentParser()
    models.add_parsers(parser.add_subparsers())
    args = parser.parse_args(words)
    status: int = args.run(args)
    return status


def test_the_verbs(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("daemons.llmctl.models.Hub", lambda token: Hub(mirror.url, token))
    store, etc = str(tmp_path / "models"), tmp_path / "etc"
    (etc / "engines").mkdir(parents=True)
    (etc / "engines" / "a.yaml").write_text(
        "model: org/tiny\nserved_names: [t]\ngpus: []\nmetrics: {port: 0}\n"
    )
    where = ("--models-dir", store, "--config-dir", str(etc))
    assert llmctl("download", *where) == 0
    assert llmctl("download", "--engine", "a", *where) == 0
    assert "org/tiny is complete" in capsys.readouterr().out
    assert llmctl("models", "list", *where) == 0
    assert COMMIT[:12] in capsys.readouterr().out
    assert llmctl("models", "verify", *where) == 0
    weights = Path(store) / "org--tiny" / "model.safetensors"
    weights.write_bytes(WEIGHTS[:-1] + b"x")
    assert llmctl("models", "verify", "org/tiny", *where) == 1
    assert "model.safetensors was changed" in capsys.readouterr().out
    with pytest.raises(Fatal, match="is the model of the engine a"):
        llmctl("models", "remove", "org/tiny", *where)
    (etc / "engines" / "a.yaml").unlink()
    assert llmctl("models", "remove", "org/tiny", *where) == 0
    assert not weights.exists()
    with pytest.raises(Fatal, match="no engine is configured"):
        llmctl("download", *where)
    with pytest.raises(Fatal, match=r"org/x.*\n.*org/y"):
        llmctl("download", "org/x", "org/y", *where)


def test_a_damaged_manifest_is_no_model(mirror: Mirror, hub: Hub, tmp_path: Path) -> None:
    store = Store(tmp_path)
    hub.download("org/tiny", None, store, quiet)
    manifest = tmp_path / "org--tiny" / MANIFEST
    assert json.loads(manifest.read_text())["revision"] == COMMIT
    manifest.write_text("{")
    assert store.find("org/tiny", None) is None
    assert store.models() == []
