"""XID lines of the kernel, from a stand-in for /dev/kmsg and for journalctl."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gpu_exporter import kernel_log
from daemons.gpu_exporter.kernel_log import (
    Unreadable,
    follow,
    journalctl,
    parse,
    parse_journal,
    parse_kmsg,
    read_journal,
    read_kmsg,
)
from daemons.gpu_exporter.snapshot import XidEvent

LOST = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@pytest.mark.parametrize(
    ("message", "pci", "xid"),
    [
        (LOST, "00000000:3b:00.0", 79),
        ("NVRM: Xid (0000:03:00): 43, Ch 00000010, engmask 00000101", "00000000:03:00.0", 43),
        ("NVRM: Xid (PCI:0000:04:00 GPU-I:05): 94, pid=7194, Contained: SM (0x1).", "00000000:04:00.0", 94),
        ("NVRM: Xid (PCI:00000001:C5:00.1): 31, pid=1", "00000001:c5:00.1", 31),
    ],
)
def test_forms_of_the_line(message: str, pci: str, xid: int) -> None:
    assert parse(message, 5.0) == XidEvent(at=5.0, pci=pci, xid=xid)


@pytest.mark.parametrize("message", ["NVRM: loading", "Xid (PCI:0000:3b:00): 79", "NVRM: Xid (x): 79", ""])
def test_other_lines(message: str) -> None:
    assert parse(message, 0.0) is None


def test_kmsg_time_is_since_boot() -> None:
    event = parse_kmsg(f"4,1234,5000000,-;{LOST}", boot=100.0)
    assert event is not None
    assert event.at == 105.0


@given(st.text())
def test_any_record(text: str) -> None:
    parse_kmsg(text, 0.0)
    parse_journal(text.encode(errors="replace"))


async def test_follows_kmsg(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    events = read_kmsg(path)
    os.write(writer, f"4,1,1000000,-;{LOST}\n DEVICE=+pci\n6,2,1,-;NVRM: other\n".encode())
    first = await anext(events)
    assert first is not None
    assert first.xid == 79
    assert await anext(events) is None
    os.write(writer, f"4,3,2000000,-;{LOST.replace('79', '31')}\n".encode())
    second = await anext(events)
    assert second is not None
    assert second.xid == 31
    await events.aclose()  # type: ignore[attr-defined]
    os.close(writer)


async def test_kmsg_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        await anext(read_kmsg(tmp_path / "kmsg"))


def entry(message: object, cursor: str, at: int = 1_700_000_000) -> str:
    return json.dumps({"MESSAGE": message, "__REALTIME_TIMESTAMP": str(at * 1_000_000), "__CURSOR": cursor})


def journal(*old: str, new: str = "", cursor: str = "c2") -> Callable[[str], tuple[str, ...]]:
    """A stand-in for journalctl: prints `old`, then `new` when it is asked for what follows `cursor`."""

    def command(after: str) -> tuple[str, ...]:
        text = "\n".join(old) if not after else new if after == cursor else "wrong cursor"
        stay = "import sys; sys.stdin.read()" if after else ""
        return (sys.executable, "-c", f"print({text!r}, flush=True)\n{stay}")

    return command


async def test_follows_the_journal_from_where_its_past_ended() -> None:
    command = journal(
        entry(LOST, "c0"),
        entry([78, 86], "c1"),
        "torn NVRM",
        entry("NVRM: loading", "c2"),
        new=entry(LOST.replace("79", "48"), "c3", 1_700_000_001),
    )
    events = read_journal(command)
    assert await anext(events) == XidEvent(at=1.7e9, pci="00000000:3b:00.0", xid=79)
    assert await anext(events) is None
    assert await anext(events) == XidEvent(at=1.7e9 + 1, pci="00000000:3b:00.0", xid=48)
    with pytest.raises(Unreadable, match="ended"):
        await anext(events)


def test_journalctl_follows_from_a_cursor() -> None:
    assert "--follow" not in journalctl()
    assert journalctl("s=1")[-2:] == ("--follow", "--after-cursor=s=1")


async def test_no_journalctl() -> None:
    with pytest.raises(Unreadable, match="No such file"):
        await anext(read_journal(lambda _: ("no-such-journalctl",)))


async def test_a_journal_without_a_message_of_the_kernel_is_not_taken_for_one_without_errors() -> None:
    with pytest.raises(Unreadable, match="systemd-journal"):
        await anext(read_journal(journal("-- No entries --")))


async def test_falls_back_to_the_next_log(tmp_path: Path) -> None:
    heard: list[int | bool] = []
    done = asyncio.Event()

    def active(reading: bool) -> None:
        heard.append(reading)
        if reading:
            done.set()

    readers = (lambda: read_kmsg(tmp_path / "none"), lambda: read_journal(journal(entry(LOST, "c2"))))
    task = asyncio.create_task(follow(readers, lambda event: heard.append(event.xid), active))
    await asyncio.wait_for(done.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert heard == [79, True], "what happened before is told first"


async def test_a_second_log_does_not_tell_again_what_the_first_one_told() -> None:
    heard: list[int | bool] = []
    done = asyncio.Event()

    async def breaks_off() -> AsyncIterator[XidEvent | None]:
        yield XidEvent(at=1.0, pci="00000000:3b:00.0", xid=79)
        yield None
        raise Unreadable("broken")

    def active(reading: bool) -> None:
        heard.append(reading)
        if heard.count(True) == 2:
            done.set()

    readers = (breaks_off, lambda: read_journal(journal(entry(LOST, "c2"))))
    task = asyncio.create_task(follow(readers, lambda event: heard.append(event.xid), active))
    await asyncio.wait_for(done.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert heard == [79, True, True]


async def test_a_log_whose_past_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_log, "_HISTORY_TIMEOUT", 0.01)
    given_up = asyncio.Event()

    async def endless() -> AsyncIterator[XidEvent | None]:
        await asyncio.Event().wait()
        yield None

    task = asyncio.create_task(follow((endless,), lambda _: None, lambda _: given_up.set()))
    await asyncio.wait_for(given_up.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_no_log_is_to_be_read() -> None:
    told: list[bool] = []
    await follow((), lambda _: None, told.append)
    assert told == [False]
