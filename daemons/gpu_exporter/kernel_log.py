"""XID errors in the kernel's log, from ``/dev/kmsg`` or the journal.

A driver that hangs still logs; so this is read in the exporter's own process, not in the worker. What the log
still holds from before the start is counted too: the counters then reach back to the boot.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import structlog

from daemons.gpu_exporter.child import start
from daemons.gpu_exporter.settings import KernelLog
from daemons.gpu_exporter.snapshot import XidEvent

log = structlog.get_logger()

KMSG = Path("/dev/kmsg")
_RETRY = 30.0
_CHUNK = 8192
_AT_ONCE = 100
_KILL_GRACE = 2.0
_JOURNALCTL = (
    "journalctl",
    "--dmesg",
    "--boot",
    "--follow",
    "--lines=all",
    "--output=json",
    "--output-fields=MESSAGE",
)

_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?(?P<domain>[0-9a-f]{4,8}):(?P<bus>[0-9a-f]{2}):(?P<device>[0-9a-f]{2})"
    r"(?:\.(?P<function>[0-7]))?[^)]*\): (?P<xid>[0-9]{1,4})\b",
    re.IGNORECASE,
)


class Unreadable(Exception):
    """This log cannot be read here, or not any more."""


class Reader(Protocol):
    """Yields XID events for as long as the log can be read."""

    def __call__(self) -> AsyncIterator[XidEvent | None]: ...


def parse(message: str, at: float) -> XidEvent | None:
    """The XID in a line of the kernel's log, if there is one."""
    match = _XID.search(message)
    if match is None:
        return None
    domain, function = int(match["domain"], 16), match["function"] or "0"
    pci = f"{domain:08x}:{match['bus']}:{match['device']}.{function}".lower()
    return XidEvent(at=at, pci=pci, xid=int(match["xid"]))


def parse_kmsg(record: str, boot: float) -> XidEvent | None:
    """The same for a record of ``/dev/kmsg``: ``priority,sequence,microseconds since boot,flags;message``."""
    head, _, message = record.partition(";")
    fields = head.split(",")
    if len(fields) < 3 or not fields[2].isdecimal():
        return None
    return parse(message, boot + int(fields[2]) / 1e6)


def parse_journal(line: bytes) -> XidEvent | None:
    """The same for a line of ``journalctl --output=json``; a message that is no text is a list of bytes."""
    try:
        entry = json.loads(line)
        message, at = entry["MESSAGE"], int(entry["__REALTIME_TIMESTAMP"]) / 1e6
    except (ValueError, KeyError, TypeError):
        return None
    return parse(message, at) if isinstance(message, str) else None


async def read_kmsg(path: Path = KMSG) -> AsyncIterator[XidEvent | None]:
    """Follow ``/dev/kmsg``; yields None once, when it is open.

    Raises:
        Unreadable: no permission, no such device, or it ended.
    """
    boot = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(fd, readable.set)
        yield None
        while True:
            await readable.wait()
            readable.clear()
            for record in _available(fd, path):
                if (event := parse_kmsg(record, boot)) is not None:
                    yield event
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _available(fd: int, path: Path) -> list[str]:
    """Records that can be read now, few enough for the loop; one read gives one record."""
    records: list[str] = []
    while len(records) < _AT_ONCE:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            break
        except BrokenPipeError:
            # Records were overwritten before they were read; the next read goes on after the gap.
            continue
        except OSError as error:
            raise Unreadable(f"{path}: {error.strerror}") from None
        if not data:
            raise Unreadable(f"{path} ended")
        records += data.decode("utf-8", "replace").splitlines()
    return records


async def read_journal(command: tuple[str, ...] = _JOURNALCTL) -> AsyncIterator[XidEvent | None]:
    """Follow the journal's kernel messages; yields None once, when it is open.

    Raises:
        Unreadable: there is no journal, no permission, or ``journalctl`` ended.
    """
    try:
        child = await start(command, quiet=True)
    except OSError as error:
        raise Unreadable(f"{command[0]}: {error.strerror}") from None
    try:
        yield None
        with contextlib.suppress(ValueError, ConnectionError):
            while line := await child.output.readline():
                if b"NVRM" in line and (event := parse_journal(line)) is not None:
                    yield event
        raise Unreadable(f"{command[0]} ended")
    finally:
        child.close()
        child.signal(signal.SIGKILL)
        await child.ended(_KILL_GRACE)


READERS: dict[KernelLog, tuple[Reader, ...]] = {
    KernelLog.AUTO: (read_kmsg, read_journal),
    KernelLog.KMSG: (read_kmsg,),
    KernelLog.JOURNAL: (read_journal,),
    KernelLog.OFF: (),
}


async def follow(
    readers: tuple[Reader, ...], found: Callable[[XidEvent], None], active: Callable[[bool], None]
) -> None:
    """Read the first of `readers` that works; when none does, try again later. Ends only by cancellation."""
    complained, since = False, 0.0
    while readers:
        reasons = []
        for reader in readers:
            try:
                async with contextlib.aclosing(reader()) as events:  # type: ignore[type-var]
                    async for event in events:
                        if event is None:
                            active(True)
                        elif event.at >= since:
                            found(event)
            except Unreadable as error:
                reasons.append(str(error))
            active(False)
        # A log that is opened again is read from its beginning again.
        since = time.time()
        if not complained:
            log.warning("the kernel's log cannot be read: XID errors come from NVML alone", reasons=reasons)
            complained = True
        await asyncio.sleep(_RETRY)
