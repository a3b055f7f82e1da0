"""Runs the engine model against the wall clock of the event loop."""

import asyncio

from daemons.simulator.faults import Faults
from daemons.simulator.model.engine import Dead, Engine

DEATH = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Runner:
    """The step loop as a task. A hang stops it between two tokens; a death ends it.

    Attributes:
        stopped: whether `stop` was called.
        dead: set once the engine has died.
        idle: set while no request is in flight.
    """

    def __init__(self, engine: Engine, faults: Faults) -> None:
        self.engine = engine
        self.faults = faults
        self.stopped = False
        self.dead = asyncio.Event()
        self.idle = asyncio.Event()
        self._wake = asyncio.Event()
        faults.changed = self.wake

    def wake(self) -> None:
        """There is something new to consider: a request, a fault, its end."""
        self._wake.set()
        self._note()

    def _note(self) -> None:
        if self.engine.in_flight:
            self.idle.clear()
        else:
            self.idle.set()

    def stop(self) -> None:
        """No further step; what is in flight stays as it is."""
        self.stopped = True
        self.wake()

    async def run(self) -> None:
        """Step for as long as the engine lives and nobody stops it."""
        clock = asyncio.get_running_loop().time
        end = clock()
        while await self._may_step():
            begun = self.engine.begin(clock())
            if begun is None:
                await self._sleep_until_woken()
                end = clock()
                continue
            step, seconds = begun
            # Counted from the end of the step before: the time that emitting takes is part of the next step.
            end = max(end, clock() - seconds) + seconds * self.faults.slowness
            await asyncio.sleep(end - clock())
            if await self._may_step():
                self.engine.end(step, clock())
                self._note()

    async def _may_step(self) -> bool:
        while self.faults.hanging and not self.stopped and not self.faults.dying:
            await self._sleep_until_woken()
        if self.faults.dying and not self.dead.is_set():
            self.dead.set()
            self.engine.die(Dead(DEATH))
        return not self.stopped and not self.dead.is_set()

    async def _sleep_until_woken(self) -> None:
        self._wake.clear()
        await self._wake.wait()
