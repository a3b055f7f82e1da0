"""The exporter's life: serves the page, keeps the worker running, reloads."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from socket import socket
from typing import Any

import structlog

from daemons.gpu_exporter import kernel_log
from daemons.gpu_exporter.page import Page
from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.gpu_exporter.supervisor import Supervisor
from daemons.gpu_exporter.worker import Orders
from daemons.gpu_exporter.worker_process import Worker, spawn
from daemons.runtime.lifecycle import Daemon
from daemons.runtime.metrics import new_registry, serve_metrics
from daemons.runtime.notify import Notifier
from daemons.runtime.sockets import listen_tcp, port_of

log = structlog.get_logger()

_TICK = 1.0
_PROCESS_EVERY = 10
_RESCAN_EVERY = 60


class GpuExporter(Daemon):
    """Serves ``/metrics`` from the last snapshot of a worker process."""

    def __init__(
        self, load: Callable[[], GpuExporterSettings], notifier: Notifier, sock: socket | None = None
    ) -> None:
        """`load` reads the settings, at first and at every reload; `sock` is one handed over by systemd."""
        self._load = load
        self._notifier = notifier
        self._sock = sock
        self._settings = load()
        self._cleanup = contextlib.AsyncExitStack()
        self._page = Page(self._settings, new_registry())
        self._supervisor = Supervisor(self._spawn, self._page, self._settings)

    async def _spawn(self) -> Worker:
        settings = self._settings
        return await spawn(
            Orders(
                interval=settings.interval,
                slow_interval=settings.slow_interval,
                max_units=settings.max_units,
                dcgm_names=settings.dcgm_names,
            )
        )

    async def start(self) -> str:
        """Listen and start collecting; ready once NVML answered, or is known not to, or takes too long."""
        sock = self._sock or listen_tcp(self._settings.listen)
        log.info("serving metrics", port=port_of(sock))
        await self._cleanup.enter_async_context(serve_metrics("GPU exporter", self._page.render, sock))
        self._supervising = self._in_background(self._supervisor.run())
        self._in_background(self._tick())
        readers = kernel_log.READERS[self._settings.kernel_log]
        self._in_background(kernel_log.follow(readers, self._page.kernel_xid, self._page.kernel_log))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.worker_timeout):
                await self._page.heard.wait()
        return self._page.status()

    async def run(self) -> None:
        """Serve for as long as the supervisor runs."""
        await self._supervising

    async def reload(self) -> str:
        """Let go of NVML for a while, then go on with settings read anew (the address stays)."""
        self._settings = self._load()
        await self._supervisor.release(self._settings)
        self._page.apply(self._settings)
        return self._page.status()

    async def stop(self) -> None:
        """End the worker, so that NVML is closed, and stop serving."""
        await self._cleanup.aclose()

    def progressing(self) -> bool:
        """The collection loop goes round."""
        return self._supervisor.progressing()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._cleanup.push_async_callback(_cancelled, task)
        return task

    async def _tick(self) -> None:
        """What happens on this process' own clock, whether a worker delivers or not."""
        ticks, shown = 0, ""
        while True:
            if (status := self._page.status()) != shown:
                log.info("state", status=status)
                self._notifier.status(status)
                shown = status
            if ticks % _PROCESS_EVERY == 0:
                self._page.refresh_process()
            ticks += 1
            if self._page.incomplete and ticks % _RESCAN_EVERY == 0:
                await self._supervisor.rescan()
            await asyncio.sleep(_TICK)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
