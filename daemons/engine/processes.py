"""The processes of one engine: started together, and never one left behind."""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemons.engine.vllm_log import tells_death
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

_PR_SET_CHILD_SUBREAPER: Final = 36
_READ_BYTES: Final = 65536
_LONGEST_LINE: Final = 16384
_REAP_SECONDS: Final = 0.05
_LAST_WORDS_SECONDS: Final = 0.2


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent died (PR_SET_CHILD_SUBREAPER, prctl(2)).

    vLLM's EngineCore is a grandchild and its workers are great-grandchildren: without this they would move
    to process 1 when vLLM's API server dies, and nobody would find them.

    Raises:
        Fatal: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise Fatal(describe_os_error(OSError(error, os.strerror(error)), "adopt orphaned processes"))


def stay_near(cpus: frozenset[int]) -> None:
    """Run on `cpus` only, as far as we may; what we start inherits that, and allocates its memory there."""
    allowed = os.sched_getaffinity(0) & cpus
    if allowed:
        os.sched_setaffinity(0, allowed)


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One line of the process table.

    Attributes:
        state: a letter as in proc(5): R, S, D, T, Z …
        session: its session id.
    """

    pid: int
    parent: int
    session: int
    state: str
    name: str


def process_table() -> dict[int, ProcessInfo]:
    """Every process that can be seen, by pid."""
    return {info.pid: info for info in _processes()}


def _processes() -> Iterator[ProcessInfo]:
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError):
            # A name may hold blanks and brackets; the fields begin after its last bracket (proc(5)).
            head, _, rest = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")
            state, parent, _, session = rest.split()[:4]
            yield ProcessInfo(int(entry.name), int(parent), int(session), state, head.partition("(")[2])


def family(session: int, table: Mapping[int, ProcessInfo], me: int) -> list[ProcessInfo]:
    """Whoever belongs to the engine that leads `session`: in its session, or descended from such a process,
    or orphaned and adopted by `me`."""
    members = {pid for pid, info in table.items() if info.session == session and pid != me}
    mine = table[me].session if me in table else 0
    members |= {pid for pid, info in table.items() if info.parent == me and info.session not in (mine, 0)}
    grown = True
    while grown:
        more = {pid for pid, info in table.items() if info.parent in members} - members
        grown = bool(more)
        members |= more
    return [table[pid] for pid in sorted(members)]


class EngineProcess:
    """A running ``vllm serve`` with everything it forked.

    Attributes:
        pid: of ``vllm serve``; also its session.
        tail: its last messages, oldest first.
        core_died: set when vLLM says that its core is dead.
    """

    def __init__(self, process: asyncio.subprocess.Process, on_line: Callable[[str], None]) -> None:
        self.pid = process.pid
        self.tail: deque[str] = deque(maxlen=400)
        self.core_died = asyncio.Event()
        self._process = process
        self._on_line = on_line
        self._pump = asyncio.create_task(self._read())

    @property
    def running(self) -> bool:
        """Whether ``vllm serve`` itself lives."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for the end of ``vllm serve``; returns its exit status, negative for a signal."""
        status = await self._process.wait()
        # What it wrote last says why it ended; a grandchild may hold the pipe open for ever.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._pump), _LAST_WORDS_SECONDS)
        return status

    def members(self) -> list[ProcessInfo]:
        """Its processes that still live."""
        return [info for info in family(self.pid, process_table(), os.getpid()) if info.state != "Z"]

    def terminate(self) -> None:
        """SIGTERM to ``vllm serve``, which passes it on."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    async def kill(self, patience: float = 10.0) -> list[ProcessInfo]:
        """SIGKILL to every process of the engine until none is left; returns those that would not die.

        Only a process in an uninterruptible wait (state D, a wedged driver) outlives this.
        """
        deadline = time.monotonic() + patience
        while True:
            left = await asyncio.to_thread(self._kill_once)
            if (not left and not self.running) or time.monotonic() > deadline:
                break
            await asyncio.sleep(_REAP_SECONDS)
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        return left

    def _kill_once(self) -> list[ProcessInfo]:
        """Kill what lives, collect adopted processes that ended; the child is the event loop's to collect."""
        me, alive = os.getpid(), []
        for info in family(self.pid, process_table(), me):
            if info.state != "Z":
                alive.append(info)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(info.pid, signal.SIGKILL)
            elif info.parent == me and info.pid != self.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(info.pid, os.WNOHANG)
        return alive

    async def _read(self) -> None:
        output = self._process.stdout
        if output is None:
            raise RuntimeError("the process was started without a pipe")
        rest = b""
        while chunk := await output.read(_READ_BYTES):
            # Progress bars rewrite their line with carriage returns.
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._take(line)
            if len(rest) > _LONGEST_LINE:
                self._take(rest)
                rest = b""
        self._take(rest)

    def _take(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE].decode(errors="replace").rstrip()
        if text:
            self.tail.append(text)
            if tells_death(text):
                self.core_died.set()
            self._on_line(text)


async def spawn(
    command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None]
) -> EngineProcess:
    """Start `command` in a session of its own; `on_line` is called for each line it writes.

    Raises:
        Fatal: the program does not exist or cannot be run.
    """
    prefix = await asyncio.to_thread(_checked_prefix, command[0])
    try:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            *command,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise Fatal(describe_os_error(error, f"start {command[0]}")) from None
    return EngineProcess(process, on_line)


def _checked_prefix(program: str) -> tuple[str, ...]:
    """What to start `program` with, so that the kernel ends it when this daemon is killed."""
    if shutil.which(program) is None:
        fault = (
            "may not be run: correct its mode" if Path(program).exists() else "does not exist: install vLLM"
        )
        raise Fatal(f"{program} {fault}, or correct the key vllm", EXIT_CONFIG)
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "TERM", "--") if setpriv else ()
