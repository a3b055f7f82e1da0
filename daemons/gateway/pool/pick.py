"""Which engine a request goes to."""

from collections.abc import Sequence
from typing import Protocol

from daemons.gateway.pool.engine import Engine


class Asked:
    """What a choice of engine may look at.

    Attributes:
        model: the model asked for.
        tenant: alias of the key.
        cache_group: whose prefix cache it uses.
        body: the request as the engine gets it.
        prompt_tokens: the estimated size of its prompt.
    """

    __slots__ = ("body", "cache_group", "model", "prompt_tokens", "tenant")

    def __init__(self, model: str, tenant: str, cache_group: str, body: bytes, prompt_tokens: int) -> None:
        self.model = model
        self.tenant = tenant
        self.cache_group = cache_group
        self.body = body
        self.prompt_tokens = prompt_tokens


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
