"""Keeps one vLLM running: start, watch, restart, drain, stop."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from daemons.engine.api import EngineApi
from daemons.engine.board import Board
from daemons.engine.config import Restart
from daemons.engine.diagnosis import describe_exit
from daemons.engine.fit import compare
from daemons.engine.gpus import Inventory
from daemons.engine.launch import Launch
from daemons.engine.meters import Meters
from daemons.engine.monitor import Hung, Monitor
from daemons.engine.postmortem import write_post_mortem
from daemons.engine.startup import Start
from daemons.engine.vllm_log import Figures
from daemons.runtime.control import EngineState
from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.notify import Notifier

if TYPE_CHECKING:
    from daemons.engine.processes import EngineProcess

log = structlog.get_logger()

_EXTENSION_MARGIN = 30.0
_LATE_LOOK_SECONDS = 30.0
_MEMORY_SECONDS = 30.0
_MEMORY_POLL_SECONDS = 0.2
_ERROR_EVENT_SECONDS = 0.5
"""Time in which vLLM, its core dead, tells its clients."""


class RestartBudget:
    """Counts restarts, and says how long to wait before the next."""

    def __init__(self, settings: Restart, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._taken: deque[float] = deque()

    def take(self) -> float:
        """Seconds to wait before the restart that is due.

        Raises:
            Fatal: the budget is used up.
        """
        now, settings = self._clock(), self._settings
        while self._taken and self._taken[0] <= now - settings.window_seconds:
            self._taken.popleft()
        if len(self._taken) >= settings.budget:
            raise Fatal(
                f"the engine failed {len(self._taken) + 1} times within {settings.window_seconds:.0f} s "
                "(restart.budget): see the log above for the causes"
            )
        self._taken.append(now)
        growth: float = settings.first_delay_seconds * 2 ** (len(self._taken) - 1)
        return min(growth, settings.longest_delay_seconds)


class Supervisor:
    """One engine over all its starts."""

    def __init__(
        self,
        launch: Launch,
        board: Board,
        api: EngineApi,
        meters: Meters,
        notifier: Notifier,
        *,
        inventory: Inventory,
    ) -> None:
        self._inventory = inventory
        self._launch = launch
        self._board = board
        self._api = api
        self._meters = meters
        self._notifier = notifier
        self._budget = RestartBudget(launch.settings.restart)
        self._process: EngineProcess | None = None
        self._started_in = 0.0

    async def start(self) -> str:
        """Start vLLM; returns the status line.

        Raises:
            Fatal: it does not come up.
        """
        self._board.begin()
        self._board.become(EngineState.STARTING)
        begun = Start(self._launch, self._api, self._phase, self._progress)
        self._process = await begun.run()
        for phase, seconds in begun.report.phases.items():
            self._meters.phase_seconds.labels(phase).set(seconds)
        self._started_in = begun.report.seconds
        self._meters.startup_seconds.set(self._started_in)
        log.info("warm-up answered", kinds=begun.report.answered, seconds=round(self._started_in, 1))
        self._board.become(EngineState.READY)
        await self._compare(begun.report.figures)
        return self._status()

    def alive(self) -> bool:
        """Whether this supervisor does its work: while the engine is ready it looks at it again and again."""
        if self._board.state != EngineState.READY:
            return True
        period = self._launch.settings.watchdog.interval_seconds + _LATE_LOOK_SECONDS
        since = max(self._meters.last_look, self._board.since)
        return time.monotonic() - since < period

    async def run(self) -> None:
        """Restart vLLM whenever it fails.

        Raises:
            Fatal: the restart budget is used up, or a restart is pointless.
        """
        while True:
            cause, reason = await self._failure()
            failed_at = time.monotonic()
            self._board.become(EngineState.STARTING, reason)
            log.error("engine failed", cause=cause, reason=reason)
            if cause == "hang":
                await self._write_down(reason)
            await self._kill()
            await self._restart(cause, reason, failed_at)

    async def stop(self) -> None:
        """Drain, then end every process of the engine."""
        stop = self._launch.settings.stop
        process = self._process
        if process is None:
            self._board.become(EngineState.STOPPED)
            return
        self._notifier.extend_timeout(
            stop.announce_seconds
            + stop.drain_seconds
            + stop.kill_seconds
            + _MEMORY_SECONDS
            + _EXTENSION_MARGIN
        )
        self._board.become(EngineState.DRAINING, "stopping")
        if stop.announce_seconds and not await self._board.announced(stop.announce_seconds):
            log.warning("a gateway did not ask in time; stopping nevertheless")
        process.terminate()
        try:
            async with asyncio.timeout(stop.drain_seconds + stop.kill_seconds):
                await process.wait()
        except TimeoutError:
            log.warning("vLLM did not end in time, killing it")
        await self._kill()
        self._board.become(EngineState.STOPPED)

    async def _failure(self) -> tuple[str, str]:
        """Wait until vLLM exits or hangs; returns the cause for the metric, and the reason in words."""
        process = self._process
        if process is None:
            return "start", "it did not start"
        dying = asyncio.create_task(process.wait())
        core = asyncio.create_task(process.core_died.wait())
        monitor = Monitor(self._api, self._board, self._meters, self._launch.settings)
        watching = asyncio.create_task(monitor.run())
        try:
            await asyncio.wait((dying, core, watching), return_when=asyncio.FIRST_COMPLETED)
            if dying.done():
                # vLLM exits 0 when its core dies: any end that was not asked for is a failure.
                return "exit", f"vLLM ended by itself ({describe_exit(dying.result())})"
            if core.done():
                await asyncio.wait((dying,), timeout=_ERROR_EVENT_SECONDS)
                return "exit", "vLLM's core died"
            try:
                await watching
            except Hung as hung:
                return "hang", str(hung)
            raise RuntimeError("the monitor ended")
        finally:
            for task in (dying, core, watching):
                task.cancel()
            await asyncio.gather(dying, core, watching, return_exceptions=True)

    async def _restart(self, cause: str, reason: str, failed_at: float) -> None:
        while True:
            # Counted from the failure: cleaning up after it is part of the delay.
            delay = max(0.0, failed_at + self._budget.take() - time.monotonic())
            self._meters.restarts.labels(cause).inc()
            self._notifier.status(f"{reason}; restarting in {delay:.1f} s")
            await asyncio.sleep(delay)
            try:
                self._notifier.status(await self.start())
            except Fatal as error:
                if error.exit_code == EXIT_CONFIG:
                    raise
                cause, reason, failed_at = "start", str(error), time.monotonic()
                log.error("restart failed", reason=reason)
                self._board.become(EngineState.STARTING, reason)
            else:
                return

    async def _write_down(self, reason: str) -> None:
        settings, process = self._launch.settings, self._process
        if process is None or settings.state_dir is None:
            return
        path = await write_post_mortem(
            settings.state_dir, reason, process, settings.vllm[0], self._board.gpu_facts
        )
        if path is not None:
            log.error("post-mortem written", file=str(path))

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        pids = {info.pid for info in await asyncio.to_thread(process.members)}
        left = await process.kill()
        await self._until_memory_is_free(pids)
        if left:
            names = ", ".join(f"{info.name} ({info.pid}, state {info.state})" for info in left)
            raise Fatal(
                f"these processes of the engine cannot be killed: {names}; the machine needs a reboot"
            )

    async def _until_memory_is_free(self, pids: set[int]) -> None:
        """Wait until the driver has let go of killed processes: the restart needs their memory."""
        deadline = time.monotonic() + _MEMORY_SECONDS
        for uuid in self._launch.gpus:
            while pids & await asyncio.to_thread(self._inventory.processes, uuid):
                if time.monotonic() > deadline:
                    log.warning("the driver still counts memory of killed processes", gpu=uuid)
                    return
                await asyncio.sleep(_MEMORY_POLL_SECONDS)

    async def _compare(self, figures: Figures) -> None:
        planned = self._launch.planned
        if planned is not None and figures.tokens is not None:
            self._meters.kv_tokens.labels("plan").set(planned.tokens)
            self._meters.kv_tokens.labels("vllm").set(figures.tokens)
            await asyncio.to_thread(compare, planned, figures, self._launch.settings.state_dir)

    def _phase(self, phase: str) -> None:
        self._board.phase = phase
        self._notifier.status(f"starting: {phase}")
        log.info("start-up phase", phase=phase)

    def _progress(self) -> None:
        self._notifier.extend_timeout(self._launch.settings.startup.stall_seconds + _EXTENSION_MARGIN)

    def _status(self) -> str:
        settings = self._launch.settings
        return (
            f"serving {settings.served_names[0]} with vLLM {self._launch.release.name}, "
            f"started in {self._started_in:.0f} s, generation {self._board.generation}"
        )
