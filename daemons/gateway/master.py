"""The stable part of the gateway: holds the sockets and speaks to the service manager, while workers serve.

A reload starts a new worker, from whatever release the command's path leads to by then; once it serves, the
old one takes no more connections and drains. A worker that dies is replaced, with the sockets' backlog
waiting for its successor.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog

from daemons.gateway import reload, succession
from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.lifecycle import Daemon
from daemons.runtime.notify import child_environment

log = structlog.get_logger()

START_SECONDS = 60.0
"""A worker that does not serve by then is given up."""
_PR_SET_PDEATHSIG = 1
_HEARTBEAT_SECONDS = 1.0
_STALE_SECONDS = 10.0
_KILL_AFTER_DRAIN = 10.0
_RESTART_DELAYS = (0.1, 0.5, 1.0, 2.0, 5.0)


class Worker:
    """A worker process.

    Attributes:
        process: the process.
        ready: set once it serves; its status line is the result.
        beat: loop time of its last sign of life.
    """

    def __init__(self, process: asyncio.subprocess.Process, now: float) -> None:
        self.process = process
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.beat = now


class Master(Daemon):
    """Runs workers on sockets that outlive them.

    Args:
        command: the worker's command line.
        sockets: listening sockets by name, handed to each worker as systemd would.
        drain: seconds a worker may take to finish what is in flight.
        validate: raises `Fatal` when the configuration cannot be used.
    """

    def __init__(
        self,
        command: list[str],
        sockets: Mapping[str, list[socket.socket]],
        drain: float,
        validate: Callable[[], object],
    ) -> None:
        self._command = command
        self._sockets = sockets
        self._drain = drain
        self._validate = validate
        self._workers: dict[int, Worker] = {}
        self._current: Worker | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost = asyncio.Event()
        self._notify: socket.socket | None = None
        self._folder = contextlib.ExitStack()

    async def start(self) -> str:
        """Start the first worker.

        Raises:
            Fatal: it does not come up.
        """
        folder = Path(self._folder.enter_context(tempfile.TemporaryDirectory(prefix="llm-gateway-")))
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notify.bind(str(folder / "notify"))
        self._notify = notify
        self._notify_path = str(folder / "notify")
        self._folder_path = folder
        asyncio.get_running_loop().add_reader(notify, self._hear)
        return await self._replace()

    async def run(self) -> None:
        """Replace the worker whenever it ends unasked."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await self._lost.wait()
            self._lost.clear()
            if loop.time() - began > _STALE_SECONDS:
                failures = 0
            log.error("the worker ended, another one takes its place")
            await asyncio.sleep(_RESTART_DELAYS[min(failures, len(_RESTART_DELAYS) - 1)])
            failures += 1
            try:
                await self._replace()
            except Fatal as error:
                log.error("the worker cannot be replaced yet", reason=str(error))
                self._lost.set()

    async def reload(self) -> str:
        """Start a new worker; once it serves, let the old one finish and go.

        Raises:
            Fatal: the configuration or the new worker is no good; the old one goes on.
        """
        try:
            await asyncio.to_thread(self._validate)
            status = await self._replace()
        except Fatal as error:
            reload.tell(os.environ, str(error), refused=True)
            raise
        reload.tell(os.environ, status)
        return status

    async def stop(self) -> None:
        """End every worker: with SIGTERM and time to drain, then with SIGKILL."""
        for worker in self._workers.values():
            _send(worker, signal.SIGTERM)
        if self._workers:
            waits = [asyncio.create_task(w.process.wait()) for w in self._workers.values()]
            await asyncio.wait(waits, timeout=self._drain + _KILL_AFTER_DRAIN)
            for worker in self._workers.values():
                _send(worker, signal.SIGKILL)
            await asyncio.gather(*waits)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._notify is not None:
            asyncio.get_running_loop().remove_reader(self._notify)
            self._notify.close()
        self._folder.close()

    def progressing(self) -> bool:
        """Whether the serving worker's event loop turns."""
        worker = self._current
        if worker is None or not worker.ready.done():
            return True
        return asyncio.get_running_loop().time() - worker.beat < _STALE_SECONDS

    async def _replace(self) -> str:
        """A new current worker; returns its status line.

        Raises:
            Fatal: it does not come up; the former one, if it lives, stays current.
        """
        worker = await self._spawn()
        try:
            async with asyncio.timeout(START_SECONDS):
                status = await worker.ready
        except TimeoutError:
            _send(worker, signal.SIGKILL)
            raise Fatal(f"the worker did not come up within {START_SECONDS:g} s") from None
        former, self._current = self._current, worker
        if former is not None:
            self._in_background(self._retire(former))
        return status

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _retire(self, worker: Worker) -> None:
        """Tell a worker to go, and see that it does."""
        _send(worker, signal.SIGTERM)
        try:
            async with asyncio.timeout(self._drain + _KILL_AFTER_DRAIN):
                await worker.process.wait()
        except TimeoutError:
            _send(worker, signal.SIGKILL)

    async def _spawn(self) -> Worker:
        fds = [(name, sock.fileno()) for name, socks in self._sockets.items() for sock in socks]
        environment = child_environment() | {
            "NOTIFY_SOCKET": self._notify_path,
            "LLM_GATEWAY_FDS": ",".join(f"{name}={fd}" for name, fd in fds),
            "WATCHDOG_USEC": str(int(3 * _HEARTBEAT_SECONDS * 1_000_000)),
            succession.SOCKET: f"{self._folder_path}/successor",
        }
        if self._current is not None and self._current.process.returncode is None:
            environment[succession.PREDECESSOR] = "1"
        # The worker is the same service: it reads the same credentials and writes to the same journal.
        for name in ("CREDENTIALS_DIRECTORY", "JOURNAL_STREAM", "INVOCATION_ID"):
            if name in os.environ:
                environment[name] = os.environ[name]
        process = await asyncio.create_subprocess_exec(
            *self._command, pass_fds=[fd for _, fd in fds], env=environment, stdin=asyncio.subprocess.DEVNULL
        )
        worker = Worker(process, asyncio.get_running_loop().time())
        self._workers[process.pid] = worker
        self._in_background(self._watch(worker))
        return worker

    async def _watch(self, worker: Worker) -> None:
        """See a worker to its end."""
        code = await worker.process.wait()
        del self._workers[worker.process.pid]
        if worker is self._current:
            self._lost.set()
        if not worker.ready.done():
            exit_code = EXIT_CONFIG if code == EXIT_CONFIG else 1
            worker.ready.set_exception(
                Fatal(f"the worker ended with status {code} while starting", exit_code)
            )
            # Nobody waits for it any more when the master itself is on its way out.
            worker.ready.exception()

    def _hear(self) -> None:
        """Take what workers tell in the notify protocol."""
        notify = self._notify
        while notify is not None:
            try:
                data, ancillary, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return
            worker = self._workers.get(_sender(ancillary))
            if worker is None:
                continue
            worker.beat = asyncio.get_running_loop().time()
            told = dict(
                line.split("=", 1) for line in data.decode(errors="replace").splitlines() if "=" in line
            )
            if told.get("READY") == "1" and not worker.ready.done():
                worker.ready.set_result(told.get("STATUS", "serving"))


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return int.from_bytes(data[:4], sys.byteorder)
    return 0


def _send(worker: Worker, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.process.send_signal(signum)


def handed_sockets() -> dict[str, list[socket.socket]]:
    """In a worker: the sockets that the master passed."""
    found: dict[str, list[socket.socket]] = {}
    for entry in os.environ.pop("LLM_GATEWAY_FDS", "").split(","):
        name, _, fd = entry.partition("=")
        if fd:
            sock = socket.socket(fileno=int(fd))
            sock.setblocking(False)
            os.set_inheritable(int(fd), False)
            found.setdefault(name, []).append(sock)
    return found


def die_with_parent() -> None:
    """In a worker: take the master's death for SIGTERM, so that no worker outlives a killed master."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
