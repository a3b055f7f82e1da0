"""Follows the progress of a running engine."""

import asyncio

from daemons.engine.api import EngineApi, EngineSilent, EngineUnreachable
from daemons.engine.board import Board
from daemons.engine.meters import Meters
from daemons.engine.vitals import Vitals, parse_vitals

_LOOK_SECONDS = 2.0


class Hung(Exception):
    """The engine has work and nothing moves."""


class Monitor:
    """Looks at an engine's metrics again and again."""

    def __init__(self, api: EngineApi, board: Board, meters: Meters) -> None:
        self._api = api
        self._board = board
        self._meters = meters
        self._last: Vitals | None = None

    async def run(self) -> None:
        """Look for ever.

        Raises:
            Hung: nothing moves although there is work.
        """
        while True:
            vitals = await self._look()
            if vitals is not None:
                if self._last is not None and vitals.tokens != self._last.tokens:
                    self._meters.token_seen()
                self._last = vitals
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> Vitals | None:
        try:
            answer = await self._api.get("/metrics", _LOOK_SECONDS)
        except (EngineSilent, EngineUnreachable):
            return None
        return parse_vitals(answer.body) if answer.status == 200 else None
