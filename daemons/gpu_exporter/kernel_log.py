"""XID errors in the kernel's log, from ``/dev/kmsg`` or the journal.

A driver that hangs still logs; so this is read in the exporter's own process, not in the worker. What the log
still holds from before the start is counted too: the counters reach back to the boot, and a restart of the
exporter does not set them back.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import structlog

from daemons.gpu_exporter.child import start
from daemons.gpu_exporter.settings import KernelLog
from daemons.gpu_exporter.snapshot import XidEvent

log = structlog.get_logger()

KMSG = Path("/dev/kmsg")
_RETRY = 30.0
_HISTORY_TIMEOUT = 30.0
_CHUNK = 8192
_AT_ONCE = 100
_KILL_GRACE = 2.0
_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?(?P<domain>[0-9a-f]{4,8}):(?P<bus>[0-9a-f]{2}):(?P<device>[0-9a-f]{2})"
    r"(?:\.(?P<function>[0-7]))?[^)]*\): (?P<xid>[0-9]{1,4})\b",
    re.IGNORECASE,
)


class Unreadable(Exception):
    """This log cannot be read here, or not any more."""


class Reader(Protocol):
    """Yields XID events for as long as the log can be read; None once, after those from before the start."""

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
    if b"NVRM" not in line:
        return None
    try:
        entry = json.loads(line)
        message, at = entry["MESSAGE"], int(entry["__REALTIME_TIMESTAMP"]) / 1e6
    except (ValueError, KeyError, TypeError):
        return None
    return parse(message, at) if isinstance(message, str) else None


async def read_kmsg(path: Path = KMSG) -> AsyncIterator[XidEvent | None]:
    """Follow ``/dev/kmsg``.

    Raises:
        Unreadable: no permission, no such device, or it ended.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    loop, readable, history = asyncio.get_running_loop(), asyncio.Event(), True
    try:
        loop.add_reader(fd, readable.set)
        while True:
            records, all_of_them = _available(fd, path)
            # Asked each time: the clock may be set after the boot, and kmsg counts from the boot.
            boot = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
            for record in records:
                if (event := parse_kmsg(record, boot)) is not None:
                    yield event
            if history and all_of_them:
                history = False
                yield None
            readable.clear()
            await readable.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _available(fd: int, path: Path) -> tuple[list[str], bool]:
    """Records that can be read now, few enough for the loop, and whether these are all."""
    records: list[str] = []
    for _ in range(_AT_ONCE):
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return records, True
        except BrokenPipeError:
            # Records were overwritten before they were read; the next read goes on after the gap.
            continue
        except OSError as error:
            raise Unreadable(f"{path}: {error.strerror}") from None
        if not data:
            raise Unreadable(f"{path} ended")
        records += data.decode("utf-8", "replace").splitlines()
    return records, False


def journalctl(cursor: str = "") -> tuple[str, ...]:
    """The command that prints the kernel's messages since the boot, or that follows those after `cursor`."""
    command = ("journalctl", "--dmesg", "--boot", "--output=json", "--output-fields=MESSAGE", "--no-tail")
    return (*command, "--follow", f"--after-cursor={cursor}") if cursor else command


async def read_journal(
    command: Callable[[str], tuple[str, ...]] = journalctl,
) -> AsyncIterator[XidEvent | None]:
    """Follow the journal's kernel messages; `command` is given the cursor to go on from, empty at first.

    Raises:
        Unreadable: there is no journal, no permission, or ``journalctl`` ended.
    """
    last = b""
    async with contextlib.aclosing(_lines(command(""))) as lines:
        async for last in lines:
            if (event := parse_journal(last)) is not None:
                yield event
    cursor = _cursor(last)
    yield None
    async with contextlib.aclosing(_lines(command(cursor))) as lines:
        async for line in lines:
            if (event := parse_journal(line)) is not None:
                yield event
    raise Unreadable("journalctl ended")


def _cursor(line: bytes) -> str:
    try:
        return str(json.loads(line)["__CURSOR"])
    except (ValueError, KeyError, TypeError):
        raise Unreadable("journalctl shows no message of the kernel (group systemd-journal?)") from None


async def _lines(command: tuple[str, ...]) -> AsyncGenerator[bytes, None]:
    try:
        child = await start(command, quiet=True)
    except OSError as error:
        raise Unreadable(f"{command[0]}: {error.strerror}") from None
    try:
        with contextlib.suppress(ValueError, ConnectionError):
            while line := await child.output.readline():
                yield line
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
    """Read the first of `readers` that works; when none does, try again later. Ends only by cancellation.

    Args:
        found: told of every event, those from before the start included.
        active: told True once all from before the start are told, False when no log can be read.
    """
    complained, since = False, 0.0
    while readers:
        reasons = []
        for reader in readers:
            reason, told = await _follow(reader, since, found, active)
            reasons.append(reason)
            if told:
                # The next log, or this one opened again, is read from its beginning: not twice the same.
                since = time.time()
        active(False)
        # From now on counts are shown: what is older would look new.
        since = time.time()
        if not complained:
            log.warning("the kernel's log cannot be read: XID errors come from NVML alone", reasons=reasons)
            complained = True
        await asyncio.sleep(_RETRY)
    active(False)


async def _follow(
    reader: Reader, since: float, found: Callable[[XidEvent], None], active: Callable[[bool], None]
) -> tuple[str, bool]:
    """Follow one log; returns why it cannot be read any more, and whether it told anything."""
    told = False
    try:
        async with (
            asyncio.timeout(_HISTORY_TIMEOUT) as history,
            contextlib.aclosing(reader()) as events,  # type: ignore[type-var]
        ):
            async for event in events:
                told = True
                if event is None:
                    history.reschedule(None)
                    active(True)
                elif event.at >= since:
                    found(event)
    except Unreadable as error:
        return str(error), told
    except TimeoutError:
        return f"no end of old messages within {_HISTORY_TIMEOUT:g} s", told
    return "it ended", told
