"""The exporter's end of a worker: start it, read its frames, end it even if it is stuck."""

import asyncio
import contextlib
import socket
import sys
from typing import Protocol

import msgspec

from daemons.gpu_exporter.snapshot import LENGTH_BYTES, Snapshot, decode, payload_length
from daemons.gpu_exporter.worker import Orders
from daemons.runtime.notify import child_environment

_TERM_GRACE = 2.0
_KILL_GRACE = 2.0


class Worker(Protocol):
    """A running worker, or a stand-in for one."""

    async def next(self) -> Snapshot:
        """Its next snapshot.

        Raises:
            EOFError: it ended.
            ValueError: it sends what is no frame.
        """

    async def end(self, *, gently: bool) -> bool:
        """End it; returns False when even SIGKILL does not end it, because the kernel does not let it go.

        Args:
            gently: first ask (SIGTERM), so that it closes NVML; a hung one is not worth asking.
        """

    def gone(self) -> bool:
        """Whether the process has ended."""


class Spawn(Protocol):
    """Starts a worker."""

    async def __call__(self) -> Worker: ...


class WorkerProcess:
    """`Worker` as a process of its own."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    async def next(self) -> Snapshot:
        try:
            header = await self._reader.readexactly(LENGTH_BYTES)
            return decode(await self._reader.readexactly(payload_length(header)))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None

    async def end(self, *, gently: bool) -> bool:
        self._writer.close()
        if gently and self._signal("terminate") and await self._ended(_TERM_GRACE):
            return True
        self._signal("kill")
        return await self._ended(_KILL_GRACE)

    def gone(self) -> bool:
        return self._process.returncode is not None

    def _signal(self, method: str) -> bool:
        with contextlib.suppress(ProcessLookupError):
            getattr(self._process, method)()
        return True

    async def _ended(self, grace: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._process.wait()
        return self.gone()


async def spawn(orders: Orders) -> WorkerProcess:
    """Start a worker process.

    Raises:
        OSError: the system refuses (out of processes, memory or descriptors).
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "daemons.gpu_exporter.worker",
                str(theirs.fileno()),
                msgspec.json.encode(orders).decode(),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=child_environment(),
            )
            reader, writer = await asyncio.open_connection(sock=ours)
        except OSError:
            ours.close()
            raise
    return WorkerProcess(process, reader, writer)
