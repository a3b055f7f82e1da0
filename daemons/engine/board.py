"""What the supervisor knows of its engine: written by the supervisor, read over ``control.sock``."""

import asyncio
import time
from collections.abc import Callable

import structlog

from daemons.runtime.control import EngineReport, EngineState, GatewayView

log = structlog.get_logger()

HEARD_SECONDS = 5.0
"""A gateway asks every second; one that was silent this long is gone and its view no longer counts."""


class Board:
    """The engine's state, and the gateways' views of it.

    Attributes:
        state: what the engine is, draining by an operator apart.
        since: when that state began, on `clock`.
        gpu_facts: the GPU exporter's last lines on this engine's GPUs.
        own_prompt_tokens: worked on for the supervisor itself since this start.
        own_completion_tokens: made for the supervisor itself since this start.
    """

    def __init__(self, gpus: tuple[str, ...] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.state = EngineState.STARTING
        self.since = clock()
        self.generation = 0
        self.own_prompt_tokens = 0
        self.own_completion_tokens = 0
        self.phase = ""
        self.gpu_facts = ""
        self._reason = ""
        self._gpus = gpus
        self._clock = clock
        self._draining = ""
        self._trouble = ""
        self._views: dict[str, tuple[float, GatewayView]] = {}
        self._asked = asyncio.Event()

    def begin(self) -> None:
        """Another vLLM starts, with its counters at zero."""
        self.generation += 1
        self.own_prompt_tokens = self.own_completion_tokens = 0

    def used(self, prompt_tokens: int, completion_tokens: int) -> None:
        """The supervisor itself asked something of the engine."""
        self.own_prompt_tokens += prompt_tokens
        self.own_completion_tokens += completion_tokens

    def become(self, state: EngineState, reason: str = "") -> None:
        """Enter `state`."""
        if (state, reason) != (self.state, self._reason):
            log.info("engine state", state=state.value, reason=reason, generation=self.generation)
        if state != self.state:
            self.since = self._clock()
        self.state, self._reason = state, reason
        if state != EngineState.STARTING:
            self.phase = ""

    def drain(self, reason: str) -> None:
        """Have the gateways send nothing new, whatever else the engine is, until `undrain`."""
        log.info("drain requested", reason=reason)
        self._draining = reason
        self._asked.clear()

    def undrain(self) -> None:
        """End `drain`."""
        log.info("drain ended")
        self._draining = ""

    def trouble(self, reason: str) -> None:
        """Say that something outside vLLM is wrong (a GPU); empty when nothing is."""
        if reason and reason != self._trouble:
            log.warning("GPU trouble", reason=reason)
        elif self._trouble and not reason:
            log.info("GPU trouble is over")
        self._trouble = reason

    def report(self) -> EngineReport:
        """The answer to ``GET /state``."""
        state, reason = self.state, self._reason
        if state == EngineState.READY and self._trouble:
            state, reason = EngineState.SICK, self._trouble
        if state in (EngineState.READY, EngineState.SICK) and self._draining:
            state, reason = EngineState.DRAINING, self._draining
        return EngineReport(
            state=state,
            reason=reason,
            generation=self.generation,
            phase=self.phase,
            gpus=self._gpus,
            own_prompt_tokens=self.own_prompt_tokens,
            own_completion_tokens=self.own_completion_tokens,
        )

    def heard(self, view: GatewayView) -> None:
        """A gateway asked, and told its view."""
        self._views[view.gateway] = (self._clock(), view)
        self._asked.set()

    def views(self) -> list[GatewayView]:
        """The views of the gateways that asked lately."""
        oldest = self._clock() - HEARD_SECONDS
        self._views = {name: heard for name, heard in self._views.items() if heard[0] >= oldest}
        return [view for _, view in self._views.values()]

    def in_flight(self) -> int:
        """Requests that gateways have with this engine."""
        return sum(view.in_flight for view in self.views())

    async def announced(self, within: float) -> bool:
        """Wait until each gateway that asked lately has asked again; False after `within` seconds."""
        waiting_for = {view.gateway for view in self.views()}
        began = self._clock()
        self._asked.clear()
        try:
            async with asyncio.timeout(within):
                while any(self._views[name][0] < began for name in waiting_for & self._views.keys()):
                    await self._asked.wait()
                    self._asked.clear()
        except TimeoutError:
            return False
        return True
