"""A foreground service manager that speaks systemd's protocols to the daemons: notify, watchdog, sockets.

It exists so that `llmctl up` runs the very daemons that the units run, without root and without systemd.
"""

import asyncio
import contextlib
import enum
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from daemons.llmctl.up.notifications import Message, receiving
from daemons.llmctl.up.processes import (
    MainProcesses,
    die_with_parent,
    kill_orphans,
    kill_tree,
    place_listen_fds,
)
from daemons.runtime.errors import EXIT_CONFIG, describe_os_error
from daemons.runtime.notify import child_environment

# systemd sets LISTEN_PID and WATCHDOG_PID between fork and exec; this shell does the same with its own pid.
_EXEC_AS_MAIN_PID = 'export LISTEN_PID=$$ WATCHDOG_PID=$$; exec "$@"'
_FIRST_LISTEN_FD = 3
_ABORT_GRACE_SEC = 3.0
_LOOK_SEC = 1.0
_CLEAN_ENDS = (0, -signal.SIGTERM)


class State(enum.StrEnum):
    """Where a service is; the words of ``systemctl status``."""

    INACTIVE = "inactive"
    STARTING = "starting"
    ACTIVE = "active"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One daemon to run. Times are seconds, named after the directives they stand for."""

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    sockets: Mapping[str, socket.socket] = field(default_factory=dict)
    watchdog_sec: float = 30.0
    timeout_start_sec: float = 90.0
    timeout_stop_sec: float = 30.0
    restart_sec: float = 1.0
    start_limit_burst: int = 5
    start_limit_interval_sec: float = 600.0


class Service:
    """Runs one `Unit`: starts it, follows its notifications, restarts it after a failure, stops it whole.

    A first start that fails is final: whoever sits at the terminal should read why.

    The manager must be a child subreaper.

    Attributes:
        state: where it is.
        log_offset: where in the log the current life of the process begins.
        exit_status: of the last main process that ended; negative for a signal.
        status: the last ``STATUS=`` line, or what the manager has to say.
        settled: set once the service has become active or has failed for good.
    """

    def __init__(
        self, unit: Unit, runtime_dir: Path, mains: MainProcesses, on_change: Callable[["Service"], None]
    ) -> None:
        self.unit = unit
        self.state = State.INACTIVE
        self.status = ""
        self.exit_status: int | None = None
        self.log_offset = 0
        self.settled = asyncio.Event()
        self._on_change = on_change
        self._mains = mains
        self._notify_path = runtime_dir / f"{unit.name}.notify"
        self._deadline = float("inf")
        self._starts: list[float] = []

    async def run(self) -> None:
        """Keep the unit running until it fails for good; when cancelled, stop it."""
        try:
            with receiving(self._notify_path, self._receive):
                while await self._run_once():  # noqa: ASYNC110 - RestartSec= is a pause, not a poll
                    await asyncio.sleep(self.unit.restart_sec)
        except OSError as error:
            self._become(State.FAILED, describe_os_error(error, "run it"))
        finally:
            self.settled.set()

    async def _run_once(self) -> bool:
        """One life of the process; returns whether another may follow."""
        self._starts.append(time.monotonic())
        self._extend(self.unit.timeout_start_sec)
        self._become(State.STARTING, "starting")
        async with self._mains.lock:
            process = await self._spawn()
            self._mains.pids.add(process.pid)
        try:
            code = await self._wait_within_deadlines(process)
        except asyncio.CancelledError:
            await self._stop(process)
            raise
        finally:
            await self._kill_whole(process)
        self.exit_status = code
        if code == EXIT_CONFIG or not self.settled.is_set() or self._start_limit_hit():
            self._become(State.FAILED, f"failed: {describe_exit(code)}")
            return False
        self._become(State.STARTING, f"{describe_exit(code)}; starting it again")
        return True

    async def _spawn(self) -> asyncio.subprocess.Process:
        unit = self.unit
        fds = [sock.fileno() for sock in unit.sockets.values()]
        environment = {
            **child_environment(),
            **unit.environment,
            "NOTIFY_SOCKET": str(self._notify_path),
            "WATCHDOG_USEC": str(int(unit.watchdog_sec * 1_000_000)),
            "LISTEN_FDS": str(len(fds)),
            "LISTEN_FDNAMES": ":".join(unit.sockets),
        }

        def prepare() -> None:
            die_with_parent()
            place_listen_fds(fds)

        with unit.log.open("ab", buffering=0) as log:
            self.log_offset = log.tell()
            return await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _EXEC_AS_MAIN_PID, "sh", *unit.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=prepare,
                pass_fds=range(_FIRST_LISTEN_FD, _FIRST_LISTEN_FD + len(fds)),
            )

    def _receive(self, message: Message) -> None:
        if "EXTEND_TIMEOUT_USEC" in message:
            self._extend(int(message["EXTEND_TIMEOUT_USEC"]) / 1_000_000)
        if "WATCHDOG" in message and self.state is State.ACTIVE:
            self._extend(self.unit.watchdog_sec)
        if "STOPPING" in message:
            self._extend(self.unit.timeout_stop_sec)
        if "READY" in message:
            self._extend(self.unit.watchdog_sec)
            self.settled.set()
        self._become(_next_state(self.state, message), message.get("STATUS", self.status))

    async def _wait_within_deadlines(self, process: asyncio.subprocess.Process) -> int:
        """The exit status of `process`, which is aborted when it misses a deadline (``WatchdogSec=``)."""
        ended = asyncio.create_task(process.wait())
        try:
            while not ended.done():
                left = self._deadline - time.monotonic()
                if left <= 0:
                    await self._abort(process, ended)
                await asyncio.wait((ended,), timeout=min(max(left, 0.01), _LOOK_SEC))
            return ended.result()
        finally:
            ended.cancel()

    async def _abort(self, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> None:
        what = "no watchdog message" if self.state is State.ACTIVE else "not ready"
        self._become(State.STARTING, f"{what} in time: killing it")
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGABRT)
        await asyncio.wait((ended,), timeout=_ABORT_GRACE_SEC)
        kill_tree(process.pid)
        self._deadline = float("inf")

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        self._become(State.STOPPING, "stopping")
        self._extend(self.unit.timeout_stop_sec)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        ended = asyncio.create_task(process.wait())
        while not ended.done() and (left := self._deadline - time.monotonic()) > 0:
            await asyncio.wait((ended,), timeout=left)
        if not ended.done():
            kill_tree(process.pid)
            await asyncio.wait((ended,), timeout=_ABORT_GRACE_SEC)
        ended.cancel()
        self._become(State.INACTIVE, "stopped" if process.returncode in _CLEAN_ENDS else "killed")

    async def _kill_whole(self, process: asyncio.subprocess.Process) -> None:
        """``KillMode=control-group``: what the main process left behind ends with it."""
        if process.returncode is None:
            kill_tree(process.pid)
        async with self._mains.lock:
            self._mains.pids.discard(process.pid)
            kill_orphans(keep=self._mains.pids)

    def _extend(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def _start_limit_hit(self) -> bool:
        since = time.monotonic() - self.unit.start_limit_interval_sec
        self._starts = [moment for moment in self._starts if moment > since]
        return len(self._starts) >= self.unit.start_limit_burst

    def _become(self, state: State, status: str) -> None:
        if (state, status) != (self.state, self.status):
            self.state, self.status = state, status
            self._on_change(self)


def _next_state(state: State, message: Message) -> State:
    if "STOPPING" in message:
        return State.STOPPING
    if "READY" in message:
        return State.ACTIVE
    return state


def describe_exit(code: int) -> str:
    """An exit status in words, as ``systemctl status`` would."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"
