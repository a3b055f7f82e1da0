"""The life of a daemon, the same under systemd and `llmctl up`: READY, watchdog, reload, STOPPING."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any

import structlog
import uvloop

from daemons.runtime.errors import Fatal
from daemons.runtime.notify import Notifier, SystemdNotifier, watchdog_interval

log = structlog.get_logger()


class Daemon:
    """A long-running process. Subclasses override what they need; every method runs on the event loop."""

    async def start(self) -> str:
        """Begin to serve; returns the status line of READY. Cancelled when the daemon is told to stop.

        Raises:
            Fatal: the daemon cannot serve.
        """
        return "running"

    async def run(self) -> None:
        """What the daemon does after READY; returning or raising ends the daemon."""
        await asyncio.Event().wait()

    async def reload(self) -> str:
        """SIGHUP: take over changed configuration; returns the status line."""
        return "running"

    async def stop(self) -> None:
        """Finish what is in flight, release everything. Also called after a failed or cancelled `start`."""

    def progressing(self) -> bool:
        """Whether the watchdog may be fed. Return False to be restarted by the service manager."""
        return True


def run(daemon: Daemon, notifier: Notifier | None = None) -> int:
    """Run `daemon` until it ends or is told to (SIGTERM, SIGINT); returns the exit status.

    Raises:
        Fatal: from the daemon, after its `stop`.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_live(daemon, notifier or SystemdNotifier()))


async def _live(daemon: Daemon, notifier: Notifier) -> int:
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    background = [
        asyncio.create_task(_feed_watchdog(daemon, notifier)),
    ]
    try:
        await _unless(stop, _serve(daemon, notifier, reload))
    finally:
        notifier.stopping("stopping")
        await daemon.stop()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
    return 0


async def _serve(daemon: Daemon, notifier: Notifier, reload: asyncio.Event) -> None:
    status = await daemon.start()
    notifier.ready(status)
    log.info("ready", status=status)
    reloading = asyncio.create_task(_reload_on_request(daemon, notifier, reload))
    try:
        await daemon.run()
    finally:
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it as soon as `stop` is set."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        return
    await working


async def _reload_on_request(daemon: Daemon, notifier: Notifier, requested: asyncio.Event) -> None:
    while True:
        await requested.wait()
        requested.clear()
        notifier.reloading()
        try:
            status = await daemon.reload()
        except Fatal as error:
            # A broken new configuration leaves the old one in force.
            log.error("reload refused", reason=str(error))
            status = f"reload refused: {error}"
        except Exception as error:
            log.exception("reload failed")
            status = f"reload failed: {error}"
        notifier.ready(status)


async def _feed_watchdog(daemon: Daemon, notifier: Notifier) -> None:
    interval = watchdog_interval()
    if interval is None:
        return
    while True:
        if daemon.progressing():
            notifier.watchdog()
        await asyncio.sleep(interval / 3)
