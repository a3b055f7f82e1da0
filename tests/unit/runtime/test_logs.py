"""Logs: the form fits the reader, and a secret is never rendered."""

import io
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from daemons.runtime import logs


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "log").open("w+") as file:
        yield file


def _lines(stream: TextIO) -> list[dict[str, object]]:
    stream.seek(0)
    return [json.loads(line) for line in stream]


def test_elsewhere_a_record_is_one_json_line(stream: TextIO) -> None:
    logs.configure("llm-gateway", stream=stream)
    structlog.get_logger().info("request", model="llama-8b", tokens=3)
    [record] = _lines(stream)
    assert record["time"]
    assert (record["level"], record["service"], record["event"]) == ("info", "llm-gateway", "request")
    assert (record["model"], record["tokens"]) == ("llama-8b", 3)


def test_levels_below_the_chosen_one_are_not_written(stream: TextIO) -> None:
    logs.configure("x", level="warning", stream=stream)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [record["event"] for record in _lines(stream)] == ["loud"]


def test_nothing_is_written_to_a_file_that_has_a_closed_streams_number(
    stream: TextIO, tmp_path: Path
) -> None:
    logs.configure("x", stream=stream)
    number = stream.fileno()
    stream.close()
    with (tmp_path / "ledger.db").open("w") as other:
        assert other.fileno() == number
        structlog.get_logger().error("the stream is closed")
    assert not (tmp_path / "ledger.db").read_text()


def test_secrets_are_not_rendered(stream: TextIO) -> None:
    logs.configure("x", stream=stream)
    structlog.get_logger().info(
        "Authorization: Bearer abc.def failed for sk-verysecretkey",
        api_key="k1-plain",
        headers={"Authorization": "Bearer abc.def", "list": ["hf_abcdefghij"]},
        wrapped=SecretStr("k2-wrapped"),
        error=ValueError("Bearer k3-inexception"),
        hf_token="k4-named",
        path="/\udcff",
    )
    stream.seek(0)
    text = stream.read()
    for secret in ("abc.def", "verysecretkey", "k1-plain", "abcdefghij", "k2-wrapped", "k3-in", "k4-named"):
        assert secret not in text
    assert text.count("[redacted]") >= 5


def test_secrets_in_an_exception_are_not_rendered(stream: TextIO) -> None:
    logs.configure("x", stream=stream)
    try:
        raise ValueError("Bearer topsecret")
    except ValueError:
        structlog.get_logger().exception("boom")
    stream.seek(0)
    text = stream.read()
    assert "ValueError" in text
    assert "topsecret" not in text


def test_the_standard_library_logs_through_the_same_form(stream: TextIO) -> None:
    logs.configure("x", stream=stream)
    logging.getLogger("aiohttp.server").error("bad %s", "thing")
    [record] = _lines(stream)
    assert (record["event"], record["logger"], record["level"]) == ("bad thing", "aiohttp.server", "error")


def test_on_a_terminal_a_person_can_read_it() -> None:
    primary, secondary = os.openpty()
    try:
        with open(secondary, "w", closefd=False) as terminal:
            logs.configure("llm-engine", stream=terminal)
            structlog.get_logger().info("ready", gpus=2)
        text = os.read(primary, 4096).decode()
    finally:
        os.close(primary)
        os.close(secondary)
        structlog.reset_defaults()
    assert "llm-engine: ready" in text
    assert "\x1b[" in text


def _journal_fields(datagram: bytes) -> dict[str, str]:
    fields = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if not separator:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        fields[name.decode()] = value.decode()
        datagram = rest
    return fields


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: TextIO) -> Iterator[socket.socket]:
    path = tmp_path / "journal"
    status = os.fstat(stream.fileno())
    monkeypatch.setattr(logs, "JOURNAL_SOCKET", path)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(10)
        logs.configure("llm-gateway", stream=stream)
        yield sock


def test_under_systemd_a_record_has_native_fields(journal: socket.socket) -> None:
    structlog.get_logger().error("refused", request_id="r1", key_alias="team-a", note="two\nlines")
    fields = _journal_fields(journal.recv(65536))
    assert fields["MESSAGE"].startswith("refused request_id=r1 key_alias=team-a")
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]) == ("3", "llm-gateway")
    assert (fields["REQUEST_ID"], fields["KEY_ALIAS"], fields["NOTE"]) == ("r1", "team-a", "two\nlines")


def test_a_record_larger_than_a_datagram_reaches_the_journal_as_a_file(journal: socket.socket) -> None:
    structlog.get_logger().info("x" * 1_000_000)
    data, fds, _, _ = socket.recv_fds(journal, 16, 1)
    assert not data
    with os.fdopen(fds[0], "rb") as file:
        file.seek(0)
        assert len(_journal_fields(file.read())["MESSAGE"]) == 1_000_000


@given(
    st.text(),
    st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none() | st.lists(st.text())),
)
def test_any_event_is_a_well_formed_journal_record(text: str, extra: dict[str, object]) -> None:
    event = {"level": "info", **extra, "event": text}
    event["level"] = "info"
    event.pop("exception", None)
    record = logs._JournalRenderer("x")(None, "info", event)
    fields = _journal_fields(record)
    assert fields["SYSLOG_IDENTIFIER"] == "x"
    assert all(name.isascii() and name == name.upper() and not name.startswith("_") for name in fields)


class _Request(msgspec.Struct):
    request_id: str
    priority: str
    Priority: int
    stream: bool
    engine: str | None
    ms: float
    extra: object


@given(
    st.builds(
        _Request,
        st.text(),
        st.text(alphabet='a,\n"\udc80'),
        st.integers(-(2**63), 2**63),
        st.booleans(),
        st.none() | st.text(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.none()
        | st.lists(st.integers(0, 9), max_size=2)
        | st.dictionaries(st.text(), st.text(), max_size=2),
    )
)
def test_a_record_is_rendered_for_the_journal_as_the_same_event_is(record: _Request) -> None:
    renderer = logs._JournalRenderer("x")
    render = logs._for_records(renderer, "request")
    assert render is not None
    event = {"level": "info", "event": "request", **msgspec.structs.asdict(record)}
    assert _journal_fields(render(record)) == _journal_fields(renderer(None, "info", event))


_A_REQUEST = _Request("r1", "high", 7, True, None, 0.25, None)


def test_a_record_is_the_same_json_line_as_the_same_event(stream: TextIO) -> None:
    logs.configure("x", stream=stream)
    records = logs.Records("x", "request", stream)
    assert records.add(_A_REQUEST)
    assert not records.add(_A_REQUEST)
    records.flush()
    structlog.get_logger().info("request", **msgspec.structs.asdict(_A_REQUEST))
    *written, event = _lines(stream)
    for line in (*written, event):
        assert line.pop("time")
    assert written == [event] * 2


def test_a_record_has_the_time_at_which_it_was_made(stream: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    records = logs.Records("x", "request", stream)
    moments = ("2027-01-15T07:59:59.998Z", "2027-01-15T07:59:59.999Z", "2027-01-15T08:00:00.003Z")
    for moment in moments:
        passed = datetime.fromisoformat(moment).timestamp() + 0.0005
        monkeypatch.setattr(time, "time", lambda passed=passed: passed)
        records.add(_A_REQUEST)
    records.flush()
    assert [line["time"] for line in _lines(stream)] == [*moments]


def test_records_below_the_chosen_level_are_not_written(stream: TextIO) -> None:
    logs.configure("x", level="warning", stream=stream)
    records = logs.Records("x", "request", stream)
    assert not records.add(_A_REQUEST)
    records.flush()
    assert not _lines(stream)


def test_a_closed_reader_does_not_end_the_daemon() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        logs.configure("x", stream=stream)
        structlog.get_logger().info("nobody reads this")
    structlog.reset_defaults()


def test_standard_error_is_the_default() -> None:
    logs.configure("x", stream=None if _has_fd(sys.stderr) else io.TextIOWrapper(io.FileIO(2, closefd=False)))
    structlog.reset_defaults()


def _has_fd(stream: TextIO) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError):
        return False
    return True
