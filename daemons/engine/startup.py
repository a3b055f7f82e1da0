"""One start of vLLM: from the command to the first answer."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from daemons.engine.api import EngineApi, EngineSilent, EngineUnreachable
from daemons.engine.diagnosis import diagnose
from daemons.engine.launch import Launch, free_socket
from daemons.engine.processes import EngineProcess, spawn
from daemons.engine.vllm_log import STARTING, WARMING_UP, Figures, PhaseTracker, parse_line
from daemons.engine.warmup import WarmUpFailed, warm_up
from daemons.runtime.errors import Fatal

log = structlog.get_logger()

_HEALTH_SECONDS = 2.0
_POLL_SECONDS = 0.1
_TICK_SECONDS = 0.5
_WARM_UP_SECONDS = 300.0

_NUMBERS = re.compile(r"\d+")
# vLLM repeats these while nothing happens.
_IDLE_CHATTER = re.compile(r"^Waiting for|No available shared memory broadcast block")


@dataclass(slots=True)
class StartReport:
    """What a start did, for metrics and status lines.

    Attributes:
        phases: seconds spent in each phase, by name.
        seconds: from the command to the last warm-up answer.
        answered: kinds of requests that the warm-up saw answered.
        figures: what vLLM said of its memory.
    """

    phases: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    answered: str = ""
    figures: Figures = field(default_factory=Figures)


class Start:
    """Starts vLLM once and waits until it answers."""

    def __init__(
        self,
        launch: Launch,
        api: EngineApi,
        on_phase: Callable[[str], None],
        on_progress: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.report = StartReport()
        self._launch = launch
        self._api = api
        self._on_phase = on_phase
        self._on_progress = on_progress
        self._clock = clock
        self._tracker = PhaseTracker()
        self._seen: set[str] = set()
        self._began = self._moved = self._phase_began = clock()
        self._phase = STARTING

    async def run(self) -> EngineProcess:
        """Start vLLM; returns it once it answered the warm-up. However this ends otherwise, nothing is left.

        Raises:
            Fatal: it did not come up; with the exit status 78 where trying again is pointless.
        """
        await asyncio.to_thread(free_socket, self._launch.socket)
        self._on_phase(self._phase)
        process = await spawn(self._launch.command, self._launch.environment, self._take_line)
        try:
            await self._watched(process)
        except BaseException:
            await process.kill()
            raise
        self._enter("")
        self.report.seconds = self._clock() - self._began
        return process

    async def _watched(self, process: EngineProcess) -> None:
        dying, serving = asyncio.create_task(process.wait()), asyncio.create_task(self._until_serving())
        try:
            while not (dying.done() or serving.done()):
                await asyncio.wait((dying, serving), timeout=_TICK_SECONDS, return_when="FIRST_COMPLETED")
                self._check_time()
            if dying.done():
                messages = [parse_line(line).text for line in process.tail]
                raise diagnose(messages, dying.result())
            try:
                serving.result()
            except (WarmUpFailed, EngineSilent, EngineUnreachable) as error:
                raise Fatal(f"vLLM started, but the first request failed: {error}") from None
        finally:
            for task in (dying, serving):
                task.cancel()
            await asyncio.gather(dying, serving, return_exceptions=True)

    async def _until_serving(self) -> None:
        while not await self._healthy():  # noqa: ASYNC110 - the engine is another process
            await asyncio.sleep(_POLL_SECONDS)
        self._enter(WARMING_UP)
        settings = self._launch.settings
        self.report.answered = await warm_up(
            self._api, settings.served_names[0], settings.max_model_len, settings.on_cpu, _WARM_UP_SECONDS
        )

    async def _healthy(self) -> bool:
        try:
            return (await self._api.get("/health", _HEALTH_SECONDS)).status == 200
        except (EngineSilent, EngineUnreachable):
            return False

    def _check_time(self) -> None:
        limits, now = self._launch.settings.startup, self._clock()
        if now - self._began > limits.cap_seconds:
            raise Fatal(
                f"vLLM did not start within {limits.cap_seconds:.0f} s (startup.cap_seconds); "
                f"it was {self._tracker}"
            )
        if now - self._moved > limits.stall_seconds and self._phase != WARMING_UP:
            raise Fatal(
                f"vLLM's start stands still: {self._tracker} for "
                f"{now - self._moved:.0f} s (startup.stall_seconds)"
            )

    def _take_line(self, raw: str) -> None:
        line = parse_line(raw)
        _log_line(line.level, line.process, line.text)
        if self._phase == "":
            return
        stepped = self._tracker.feed(line.text)
        self.report.figures.feed(line.text)
        fingerprint = _NUMBERS.sub("#", line.text)
        new = fingerprint not in self._seen and not _IDLE_CHATTER.search(line.text)
        self._seen.add(fingerprint)
        if stepped:
            self._enter(self._tracker.phase)
            self._on_phase(str(self._tracker))
        if stepped or new:
            self._moved = self._clock()
            self._on_progress()

    def _enter(self, phase: str) -> None:
        if self._phase in (phase, "") or (self._phase == WARMING_UP and phase):
            return
        now = self._clock()
        self.report.phases[self._phase] = now - self._phase_began
        self._phase, self._phase_began = phase, now
        if phase == WARMING_UP:
            self._on_phase(phase)
            self._on_progress()


def _log_line(level: str, process: str, text: str) -> None:
    method = getattr(log, level, log.info)
    method(text, source=f"vllm {process}".rstrip())
