"""Which engine a request goes to."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from daemons.gateway.pool.engine import Engine


class Asked(msgspec.Struct, frozen=True):
    """What a choice of engine may look at.

    Attributes:
        model: the model asked for.
        tenant: alias of the key.
        cache_group: whose prefix cache it uses.
        body: the request as the engine gets it.
        prompt_tokens: the estimated size of its prompt.
    """

    model: str
    tenant: str
    cache_group: str
    body: bytes
    prompt_tokens: int


class Routing(Protocol):
    """Chooses among engines that would all take the request."""

    def choose(self, engines: Sequence[Engine], asked: Asked) -> Engine:
        """One of `engines`, which is not empty."""


class LeastInFlight:
    """The engine with the least work in flight; among equals each in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, engines: Sequence[Engine], asked: Asked) -> Engine:
        if len(engines) == 1:
            return engines[0]
        self._turn += 1
        start = self._turn % len(engines)
        return min((*engines[start:], *engines[:start]), key=lambda engine: engine.in_flight)
