"""XID lines of the kernel, from a stand-in for /dev/kmsg and for journalctl."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gpu_exporter.kernel_log import (
    Unreadable,
    follow,
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
    assert await anext(events) is None
    first = await anext(events)
    assert first is not None
    assert first.xid == 79
    os.write(writer, f"4,3,2000000,-;{LOST.replace('79', '31')}\n".encode())
    second = await anext(events)
    assert second is not None
    assert second.xid == 31
    await events.aclose()  # type: ignore[attr-defined]
    os.close(writer)


async def test_kmsg_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        await anext(read_kmsg(tmp_path / "kmsg"))


async def test_follows_the_journal() -> None:
    lines = (
        '{"MESSAGE":"' + LOST + '","__REALTIME_TIMESTAMP":"1700000000000000"}',
        '{"MESSAGE":[78,86],"__REALTIME_TIMESTAMP":"1"}',
        "torn",
    )
    events = read_journal((sys.executable, "-c", f"print({chr(10).join(lines)!r})"))
    assert await anext(events) is None
    assert await anext(events) == XidEvent(at=1.7e9, pci="00000000:3b:00.0", xid=79)
    with pytest.raises(Unreadable):
        await anext(events)


async def test_no_journalctl() -> None:
    with pytest.raises(Unreadable):
        await anext(read_journal(("no-such-journalctl",)))


async def test_falls_back_to_the_next_log(tmp_path: Path) -> None:
    found: list[XidEvent] = []
    states: list[bool] = []
    done = asyncio.Event()

    def add(event: XidEvent) -> None:
        found.append(event)
        done.set()

    line = '{"MESSAGE":"' + LOST + '","__REALTIME_TIMESTAMP":"1700000000000000"}'
    command = (sys.executable, "-c", f"print({line!r}, flush=True); import sys; sys.stdin.read()")
    readers = (lambda: read_kmsg(tmp_path / "none"), lambda: read_journal(command))
    task = asyncio.create_task(follow(readers, add, states.append))
    await asyncio.wait_for(done.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [event.xid for event in found] == [79]
    assert states[:2] == [False, True]
