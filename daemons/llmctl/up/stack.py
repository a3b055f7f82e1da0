"""Starts the services of a local stack, waits until a model answers, and ends them in order."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

from daemons.llmctl.up.processes import MainProcesses, become_subreaper, kill_orphans
from daemons.llmctl.up.screen import Screen
from daemons.llmctl.up.units import Service, State, Unit
from daemons.runtime.errors import EXIT_CONFIG, Fatal

_LOOK_SEC = 0.2


class Stack:
    """The services of one `llmctl up`, in the order in which they are ended."""

    def __init__(self, units: Sequence[Unit], runtime_dir: Path, screen: Screen) -> None:
        self._screen = screen
        self._mains = MainProcesses()
        self.services = [Service(unit, runtime_dir, self._mains, self._changed) for unit in units]
        self.interrupted = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The services run within the context; at its end nothing of them is left.

        A second SIGINT or SIGTERM stops waiting for those that are still stopping.
        """
        become_subreaper()
        loop = asyncio.get_running_loop()
        impatient = asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, self._on_signal, impatient)
        tasks = [asyncio.create_task(service.run(), name=service.unit.name) for service in self.services]
        try:
            yield
        finally:
            hurry = asyncio.create_task(impatient.wait())
            for task in tasks:
                task.cancel()
                await asyncio.wait((task, hurry), return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            kill_orphans(keep=())
            await asyncio.gather(*tasks, return_exceptions=True)
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(signum)

    async def until_ready(self) -> bool:
        """Wait until every service is active; False when interrupted first.

        Raises:
            Fatal: one of them failed for good.
        """
        for service in self.services:
            with self._screen.step(service.unit.name, end="up") as step:
                settled = asyncio.create_task(service.settled.wait())
                while not settled.done() and not self.interrupted.is_set():
                    step.phase(service.status)
                    await asyncio.wait((settled,), timeout=_LOOK_SEC)
                settled.cancel()
                if self.interrupted.is_set():
                    return False
                if service.state is State.FAILED:
                    raise failure_of(service)
        return True

    async def unless_interrupted(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run `work` to its end; False when interrupted first, which cancels it."""
        working = asyncio.create_task(work)
        waiting = asyncio.create_task(self.interrupted.wait())
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            return False
        await working
        return True

    async def until_ended(self) -> None:
        """Wait until interrupted.

        Raises:
            Fatal: a service failed for good meanwhile.
        """
        while not self.interrupted.is_set():
            for service in self.services:
                if service.state is State.FAILED:
                    raise failure_of(service)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.interrupted.wait(), timeout=0.5)

    def _on_signal(self, impatient: asyncio.Event) -> None:
        if self.interrupted.is_set():
            impatient.set()
        self.interrupted.set()

    def _changed(self, service: Service) -> None:
        if service.settled.is_set() and service.state is not State.INACTIVE:
            self._screen.line(f"{service.unit.name}: {service.status}", style="dim")


def failure_of(service: Service) -> Fatal:
    """Why `service` failed, in its own last words."""
    words = last_words(service.unit.log, service.log_offset) or service.status
    code = EXIT_CONFIG if service.exit_status == EXIT_CONFIG else 1
    return Fatal(f"{service.unit.name}: {words} (log: {service.unit.log})", code)


def last_words(log: Path, offset: int) -> str:
    """The critical records of a daemon's JSON log from `offset` on, else the last line whatever that is."""
    words: list[str] = []
    lines: list[str] = []
    with contextlib.suppress(OSError):
        with log.open("rb") as file:
            file.seek(offset)
            lines = file.read().decode(errors="replace").splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, AttributeError):
                record = json.loads(line)
                if record.get("level") == "critical" and str(record.get("event")) not in words:
                    words.append(str(record.get("event")))
    return "; ".join(words) or (lines[-1] if lines else "")
