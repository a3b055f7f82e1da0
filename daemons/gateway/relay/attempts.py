"""Sending a request to an engine, and once more to another where that can still help."""

import asyncio
from time import monotonic

from daemons.gateway.errors import ErrorCode
from daemons.gateway.exchange import Exchange
from daemons.gateway.metrics import Metrics
from daemons.gateway.pool.engine import Engine
from daemons.gateway.pool.pick import Asked
from daemons.gateway.pool.pool import Pool
from daemons.gateway.relay.relay import Relay
from daemons.gateway.relay.upstream import EngineConnection

# They would be about the gateway's own key and the engine's address, of which the client knows nothing.
_NOT_THE_CLIENTS = frozenset({401, 403, 405, 407})
_RETRYABLE = frozenset({ErrorCode.ENGINE_UNREACHABLE, ErrorCode.ENGINE_LOST, ErrorCode.ENGINE_BUSY})


class RetryBudget:
    """Allows retries for at most a tenth of the requests, so that a failing pool is not asked twice as much.

    Args:
        share: of the requests.
        burst: retries that may come at once.
    """

    def __init__(self, share: float = 0.1, burst: float = 10.0) -> None:
        self._share = share
        self._burst = burst
        self._left = burst

    def request(self) -> None:
        """A request came."""
        if self._left < self._burst:
            self._left = min(self._burst, self._left + self._share)

    def take(self) -> bool:
        """Whether a retry is allowed, which it then uses up."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Attempts:
    """Carries a request to an engine and its answer to the relay."""

    def __init__(self, pool: Pool, metrics: Metrics, budget: RetryBudget) -> None:
        self._pool = pool
        self._metrics = metrics
        self._budget = budget

    async def run(
        self, exchange: Exchange, relay: Relay, asked: Asked, request_head: bytes
    ) -> ErrorCode | None:
        """Bring `asked` to `exchange.engine`, or to another one; how it failed, None when it went well.

        `request_head` is everything between the engine's path prefix and its own header lines. Moves
        `exchange.engine` and the place it holds when another engine takes over.
        """
        self._budget.request()
        fresh = False
        while True:
            engine = exchange.engine
            assert engine is not None  # noqa: S101 - the caller admitted it
            connection = None if fresh else engine.dialer.take(monotonic())
            if connection is None:
                connection = await _opened(engine, relay)
            if connection is not None:
                fresh = connection.used == 0
                engine.relays.add(relay)
                try:
                    await relay.begin(connection, _request(engine, asked, request_head))
                except asyncio.CancelledError:
                    # An answer in one piece that breaks off cuts its client, and that cancels this.
                    if relay.answered and relay.failure is not None:
                        _judge(engine, relay)
                    raise
                finally:
                    engine.relays.discard(relay)
                if not fresh and relay.failure is ErrorCode.ENGINE_LOST and relay.head is None:
                    # The engine closed an idle connection while the request was on its way.
                    fresh = True
                    continue
                _judge(engine, relay)
            failure = relay.failure
            if failure is None or relay.answered or not self._moves_on(exchange, asked, failure):
                return failure
            fresh = False

    def _moves_on(self, exchange: Exchange, asked: Asked, failure: ErrorCode) -> bool:
        """Whether another engine takes over after the first one failed."""
        if failure not in _RETRYABLE or exchange.retries or exchange.engine is None:
            return False
        other = self._pool.pick(asked, monotonic(), without=(exchange.engine,))
        if other is None or not self._budget.take():
            return False
        exchange.retries += 1
        self._metrics.retries.add((exchange.model_label, failure.value))
        exchange.engine.in_flight -= 1
        other.in_flight += 1
        exchange.engine = other
        return True


def _request(engine: Engine, asked: Asked, head: bytes) -> bytes:
    length = b"Content-Length: %d\r\n\r\n" % len(asked.body)
    return b"".join((b"POST ", engine.prefix, head, engine.headers, length, asked.body))


async def _opened(engine: Engine, relay: Relay) -> EngineConnection | None:
    try:
        return await engine.dialer.open()
    except OSError as error:
        engine.failed(monotonic())
        relay.failure, relay.detail = ErrorCode.ENGINE_UNREACHABLE, str(error) or "timed out"
        return None


def _judge(engine: Engine, relay: Relay) -> None:
    if relay.failure is not None:
        if relay.failure in _RETRYABLE:
            engine.failed(monotonic())
        return
    engine.worked()
    head = relay.head
    if head is not None and head.status != 200:
        relay.failure = _failure_of(head.status)
        relay.detail = f"the engine answers with status {head.status}"


def _failure_of(status: int) -> ErrorCode | None:
    """What an engine's status says of the engine; None when it speaks of the request."""
    if status in {429, 503}:
        return ErrorCode.ENGINE_BUSY
    if status >= 500 or status in _NOT_THE_CLIENTS:
        return ErrorCode.ENGINE_ERROR
    return None if status >= 400 else ErrorCode.ENGINE_PROTOCOL_ERROR
