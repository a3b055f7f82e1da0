"""The exporter's end of a worker: start it, read its frames, end it even if it is stuck."""

import asyncio
import signal
import sys
from typing import Protocol

import msgspec
import structlog

from daemons.gpu_exporter.child import Child, start
from daemons.gpu_exporter.snapshot import LENGTH_BYTES, Snapshot, decode, payload_length
from daemons.gpu_exporter.worker import Orders

log = structlog.get_logger()

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

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ending = False

    async def next(self) -> Snapshot:
        try:
            header = await self._child.output.readexactly(LENGTH_BYTES)
            return decode(await self._child.output.readexactly(payload_length(header)))
        except (asyncio.IncompleteReadError, ConnectionError):
            if await self._child.ended(_KILL_GRACE) and self._child.status and not self._ending:
                log.error("the NVML worker broke down; replacing it", status=_in_words(self._child.status))
            raise EOFError from None

    async def end(self, *, gently: bool) -> bool:
        self._ending = True
        self._child.close()
        if gently:
            self._child.signal(signal.SIGTERM)
            if await self._child.ended(_TERM_GRACE):
                return True
        self._child.signal(signal.SIGKILL)
        return await self._child.ended(_KILL_GRACE)

    def gone(self) -> bool:
        return self._child.gone


def _in_words(status: int) -> str:
    return f"exit status {status}" if status > 0 else signal.Signals(-status).name


async def spawn(orders: Orders) -> WorkerProcess:
    """Start a worker process.

    Raises:
        OSError: the system refuses (out of processes, memory or descriptors).
    """
    command = (sys.executable, "-m", "daemons.gpu_exporter.worker", msgspec.json.encode(orders).decode())
    return WorkerProcess(await start(command))
