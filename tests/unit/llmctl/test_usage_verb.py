"""``llmctl usage``, ``backup`` and ``restore``."""

import csv
import io
import json
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from daemons.gateway.tenants.ledger import book
from daemons.gateway.tenants.ledger.book import Batch, Closed
from daemons.llmctl.__main__ import main

Ctl = Callable[..., int]
NOON = 1_800_014_400_000_000
SINCE = ("--since", "2027-01-01")


def row(key: str, outcome: str = "ok", completion: int = 2) -> Closed:
    return Closed(NOON - 1, NOON, key, "m", "chat", "e", "r", True, outcome, 7, 1, completion, False, 0, None)


def fill(path: Path, *rows: Closed, number: int = 1) -> None:
    with closing(book.connect(path)) as connection:
        book.register(connection, 1, "x")
        book.write(connection, 1, Batch(number, [], rows, []))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return host(tmp_path / "a")


def host(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump({"engines": [{"name": "e", "url": "unix:///e", "models": ["m"]}]}))
    (folder / "keys.d").mkdir()
    return path


def ctl(config: Path, verb: str, *words: str) -> int:
    return main([verb, *words, "--config", str(config)])


def test_usage_as_table_csv_and_json(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fill(config.parent / "ledger.db", row("a"), row("a", "client_gone"), row("b", completion=1_000_000))
    assert ctl(config, "usage", *SINCE) == 0
    table = capfd.readouterr().out
    assert "1,000,000" in table
    assert "total" in table
    assert ctl(config, "usage", *SINCE, "--by", "day,key", "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [(r["day"], r["key"], r["requests"], r["failed"]) for r in rows] == [
        ("2027-01-15", "a", "2", "1"),
        ("2027-01-15", "b", "1", "0"),
    ]
    assert ctl(config, "usage", *SINCE, "--key", "b", "--json") == 0
    assert json.loads(capfd.readouterr().out) == [
        {
            "key": "b",
            "requests": 1,
            "failed": 0,
            "prompt_tokens": 7,
            "cached_tokens": 1,
            "completion_tokens": 1_000_000,
        }
    ]
    assert ctl(config, "usage", "--since", "2029-01-01") == 0
    assert "Nothing was used" in capfd.readouterr().out


def test_names_stay_whole_where_no_terminal_sets_a_width(
    config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "a-name-of-sixty-four-characters-".ljust(64, "x")
    fill(config.parent / "ledger.db", row(name))
    assert ctl(config, "usage", *SINCE, "--by", "day,key,model") == 0
    assert name in capfd.readouterr().out


def test_days_in_the_wrong_order_are_an_error_of_usage(
    config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(config.parent / "ledger.db", row("a"))
    assert ctl(config, "usage", "--since", "2027-02-01", "--until", "2027-01-31") == 2
    assert "--since 2027-02-01 is later than --until 2027-01-31" in capfd.readouterr().err
    assert ctl(config, "usage", "--since", "2027-01-15", "--until", "2027-01-15") == 0


def test_a_key_that_was_never_there_is_said(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fill(config.parent / "ledger.db", row("gone"))
    main(["keys", "add", "idle", "--config", str(config)])
    capfd.readouterr()
    for name, warned in (("nope", True), ("idle", False), ("gone", False)):
        assert ctl(config, "usage", *SINCE, "--key", name) == 0
        assert ("there is no key named 'nope'" in capfd.readouterr().err) == warned


def test_usage_tells_of_killed_gateways(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fill(config.parent / "ledger.db", row("a"), row("a", book.LOST))
    ctl(config, "usage", *SINCE)
    assert "1 request ended with a gateway that was killed" in capfd.readouterr().out


def test_a_ledger_that_is_not_there_or_none_is_said(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ctl(config, "usage") == 1
    assert "there is no ledger" in capfd.readouterr().err
    (config.parent / "ledger.db").write_bytes(b"nonsense" * 1000)
    assert ctl(config, "usage") == 1
    assert "cannot be read" in capfd.readouterr().err


def test_a_backup_is_restored_elsewhere(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["keys", "add", "team-a", "--config", str(config), "--concurrency", "3"])
    secret = capfd.readouterr().out.strip()
    fill(config.parent / "ledger.db", row("team-a"))
    file = tmp_path / "backup.tar.gz"
    with closing(book.connect(config.parent / "ledger.db")) as writing:
        # Consistent while a gateway writes: what is not committed is not in it.
        writing.execute("BEGIN IMMEDIATE")
        writing.execute("DELETE FROM requests")
        assert ctl(config, "backup", str(file)) == 0
        writing.execute("ROLLBACK")
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "backup.tar.gz"]
    assert secret.encode() not in file.read_bytes()
    other = host(tmp_path / "b")
    assert ctl(other, "restore", str(file)) == 0
    there = other.parent / "keys.d" / "team-a.yaml"
    here = config.parent / "keys.d" / "team-a.yaml"
    assert yaml.safe_load(there.read_text()) == yaml.safe_load(here.read_text())
    assert [r.requests for r in book.usage(other.parent / "ledger.db", by=())] == [1]
    assert "in place: 1 key, 1 request\n" in capfd.readouterr().out


def test_a_restore_replaces_only_when_told_and_a_writer_goes_on(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, file = config.parent / "ledger.db", tmp_path / "backup.tar.gz"
    main(["keys", "add", "team-a", "--config", str(config)])
    fill(path, row("team-a"))
    ctl(config, "backup", str(file))
    main(["keys", "add", "team-b", "--config", str(config)])
    with closing(book.connect(path)) as gateway:
        book.register(gateway, 2, "x")
        book.write(gateway, 2, Batch(1, [], [row("team-b")], []))
        assert ctl(config, "restore", str(file)) == 1
        assert "--replace" in capfd.readouterr().err
        assert ctl(config, "restore", "--replace", str(file)) == 0
        assert sorted(p.name for p in (config.parent / "keys.d").iterdir()) == ["team-a.yaml"]
        book.write(gateway, 2, Batch(2, [], [row("team-c")], []))
    assert [r.key for r in book.usage(path, by=("key",))] == ["team-a", "team-c"]


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_what_is_no_backup_is_refused(
    config: Path, tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.tar.gz"
    if content is None:
        with tarfile.open(file, "w:gz") as archive:
            archive.add(config, "../../escape.yaml")
    else:
        file.write_bytes(content)
    assert ctl(config, "restore", str(file)) == 1
    assert "no backup" in capfd.readouterr().err
    assert not (tmp_path.parent / "escape.yaml").exists()


@pytest.mark.parametrize("how", ["nonsense", "of a later release", "cut short", "damaged"])
def test_a_backup_that_cannot_be_used_changes_nothing(
    config: Path, tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path, file = config.parent / "ledger.db", tmp_path / "backup.tar.gz"
    main(["keys", "add", "team-a", "--config", str(config)])
    fill(path, row("team-a"))
    if how == "of a later release":
        with closing(sqlite3.connect(path)) as ledger:
            ledger.execute(f"PRAGMA user_version = {book.VERSION + 1}")
    elif how == "nonsense":
        path.write_bytes(b"nonsense" * 1000)
    with tarfile.open(file, "w:gz") as archive:
        manifest = tmp_path / "manifest.json"
        manifest.write_text("{}")
        archive.add(manifest, "manifest.json")
        archive.add(path, "ledger.db")
    whole = file.read_bytes()
    if how == "cut short":
        file.write_bytes(whole[: len(whole) // 2])
    elif how == "damaged":
        middle = len(whole) // 2
        file.write_bytes(
            whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 40]) + whole[middle + 40 :]
        )
    other = host(tmp_path / "b")
    main(["keys", "add", "team-b", "--config", str(other)])
    fill(other.parent / "ledger.db", row("team-b"))
    capfd.readouterr()
    assert ctl(other, "restore", "--replace", str(file)) == 1
    assert str(file) in capfd.readouterr().err
    assert [p.name for p in (other.parent / "keys.d").iterdir()] == ["team-b.yaml"]
    assert [r.key for r in book.usage(other.parent / "ledger.db", by=("key",))] == ["team-b"]


def test_a_backup_without_a_ledger_has_the_keys(config: Path, tmp_path: Path) -> None:
    main(["keys", "add", "team-a", "--config", str(config)])
    assert ctl(config, "backup", str(tmp_path / "x.tar.gz")) == 0
    other = host(tmp_path / "b")
    assert ctl(other, "restore", str(tmp_path / "x.tar.gz")) == 0
    assert not (other.parent / "ledger.db").exists()


def test_a_damaged_ledger_is_not_backed_up_in_silence(config: Path, tmp_path: Path) -> None:
    (config.parent / "ledger.db").write_bytes(b"nonsense" * 1000)
    assert ctl(config, "backup", str(tmp_path / "x.tar.gz")) == 1
    assert not (tmp_path / "x.tar.gz").exists()
    with pytest.raises(sqlite3.Error):
        book.connect(config.parent / "ledger.db", readonly=True)


def test_a_backup_that_cannot_be_written_says_where(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ctl(config, "backup", str(tmp_path / "nope" / "x.tar.gz")) == 1
    assert f"the backup x.tar.gz in {tmp_path}/nope: it does not exist" in capfd.readouterr().err
    fill(config.parent / "ledger.db", row("a"))

    class Full:
        def backup(self, _: sqlite3.Connection) -> None:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

        def close(self) -> None:
            pass

    monkeypatch.setattr(book, "connect", lambda *_, **__: Full())
    assert ctl(config, "backup", str(tmp_path / "x.tar.gz")) == 1
    assert f"in {tmp_path}: the disk is full" in capfd.readouterr().err


def test_a_backup_that_is_not_there_is_named_once(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ctl(config, "restore", "/nope.tar.gz") == 1
    assert capfd.readouterr().err.count("/nope.tar.gz") == 1
    assert main(["config", "show", "gateway", "/nope.yaml"]) == 78
    assert capfd.readouterr().err.count("/nope.yaml") == 1
