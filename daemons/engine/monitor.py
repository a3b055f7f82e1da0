"""The progress watchdog: an engine that has work and does not move is hung, whatever ``/health`` says."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from daemons.engine.api import EngineApi, EngineSilent, EngineUnreachable
from daemons.engine.board import Board
from daemons.engine.config import EngineSettings
from daemons.engine.meters import Meters
from daemons.engine.vitals import Vitals, parse_vitals

log = structlog.get_logger()

_LOOK_SECONDS = 5.0


class Hung(Exception):
    """The engine has work and nothing moves."""


class Judge:
    """Decides from a row of looks whether an engine hangs. Pure: time and looks are given to it.

    Progress is any change in the token counters, the KV use, or the running and waiting counts; in a long
    chunked prefill only the KV use moves. Work is what the engine itself reports, what the gateways have in
    flight (a wedged engine may say that it runs nothing), and a probe that is not answered.
    """

    def __init__(self, misses: int) -> None:
        self._misses_allowed = misses
        self._last: Vitals | None = None
        self.misses = 0
        self.token_moved = False

    def look(self, vitals: Vitals | None, in_flight: int, probing: bool) -> bool:
        """Take in a look; `vitals` is None when the engine did not answer. Whether the engine has work.

        Raises:
            Hung: this was the last miss allowed.
        """
        before, self._last = self._last, vitals or self._last
        moved = vitals is not None and vitals != before
        self.token_moved = vitals is not None and before is not None and vitals.tokens != before.tokens
        busy = in_flight > 0 or probing or (self._last is not None and self._last.busy)
        silent = vitals is None
        if moved or not (busy or silent):
            self.misses = 0
            return busy
        self.misses += 1
        if self.misses >= self._misses_allowed:
            raise Hung(self._describe(silent, in_flight, probing))
        return True

    def _describe(self, silent: bool, in_flight: int, probing: bool) -> str:
        engine = "it does not even tell its metrics"
        if not silent and self._last is not None:
            engine = (
                f"{self._last.running:.0f} running, {self._last.waiting:.0f} waiting, "
                f"{self._last.generated:.0f} tokens generated"
            )
        probe = ", a probe unanswered" if probing else ""
        return (
            f"nothing moved in {self.misses} looks with work in flight: {engine}; "
            f"{in_flight} in flight at the gateway{probe}"
        )


class Monitor:
    """Looks at an engine again and again until it hangs."""

    def __init__(
        self,
        api: EngineApi,
        board: Board,
        meters: Meters,
        settings: EngineSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._board = board
        self._meters = meters
        self._settings = settings.watchdog
        self._model = settings.served_names[0]
        self._clock = clock
        self._judge = Judge(settings.watchdog.misses)
        self._probe: asyncio.Task[None] | None = None
        self._quiet_since = clock()

    async def run(self) -> None:
        """Look for ever.

        Raises:
            Hung: nothing moves although there is work.
        """
        try:
            while True:
                next_look = self._clock() + self._settings.interval_seconds
                await self._look_once()
                self._meters.looked()
                await asyncio.sleep(max(0.0, next_look - self._clock()))
        finally:
            if self._probe is not None:
                self._probe.cancel()
                await asyncio.gather(self._probe, return_exceptions=True)

    async def _look_once(self) -> None:
        probing = self._probe is not None and not self._probe.done()
        busy = self._judge.look(await self._vitals(), self._board.in_flight(), probing)
        now = self._clock()
        if self._judge.token_moved:
            self._meters.token_seen()
            self._quiet_since = now
        idle_too_long = not busy and now - self._quiet_since >= self._settings.idle_probe_seconds
        # A client that reads slowly keeps a request in flight long after the engine did its part: one token
        # that the engine still makes tells that apart from a hang.
        if not probing and (self._judge.misses or idle_too_long):
            self._quiet_since = now
            self._probe = asyncio.create_task(self._ask_one_token())

    async def _vitals(self) -> Vitals | None:
        try:
            answer = await self._api.get("/metrics", min(_LOOK_SECONDS, self._settings.interval_seconds))
        except (EngineSilent, EngineUnreachable):
            return None
        return parse_vitals(answer.body) if answer.status == 200 else None

    async def _ask_one_token(self) -> None:
        # Its answer shows in the token counters; here it only must not raise, and outwait any verdict.
        limit = self._settings.interval_seconds * (self._settings.misses + 2)
        body = {"model": self._model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        with contextlib.suppress(EngineSilent, EngineUnreachable):
            await self._api.post("/v1/completions", body, limit)
