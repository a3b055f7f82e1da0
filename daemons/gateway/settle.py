"""The end of every request, whichever way it took: counted, logged, billed."""

import asyncio
from typing import Protocol

import msgspec
import structlog

from daemons.gateway.errors import ErrorCode, status_of
from daemons.gateway.exchange import Exchange
from daemons.gateway.history import History, Record
from daemons.gateway.metrics import Metrics
from daemons.gateway.relay.usage import TokenCounts
from daemons.runtime.logs import Records

log = structlog.get_logger()

_FLUSH_SECONDS = 0.05
_NOTHING = TokenCounts()


class Bill(Protocol):
    """Takes note of what requests use; never waits and never raises."""

    def began(self, exchange: Exchange) -> None:
        """A request was let in by its limits."""

    def ended(
        self, exchange: Exchange, counts: TokenCounts, outcome: str, now: float, *, estimated: bool
    ) -> None:
        """A request has ended at loop time `now`."""


class Settle:
    """Called exactly once for every request that was authenticated."""

    def __init__(self, metrics: Metrics, records: Records, history: History, bill: Bill) -> None:
        self._metrics = metrics
        self._records = records
        self._history = history
        self._loop = asyncio.get_running_loop()
        self._bill = bill

    def __call__(self, exchange: Exchange, failure: ErrorCode | None, now: float, detail: str = "") -> None:
        """End `exchange` at loop time `now`; `failure` is None when it went well."""
        outcome = failure.value if failure else "ok"
        relay = exchange.relay
        counts, estimated = self._counts(exchange)
        reservation = exchange.reservation
        if reservation is not None:
            if relay is not None and relay.left:
                reservation.settle(counts.prompt, counts.completion)
            else:
                reservation.cancel()
        self._bill.ended(exchange, counts, outcome, now, estimated=estimated)
        record = _record(exchange, failure, counts, now)
        series = exchange.series
        if series is not None:
            series.in_flight -= 1
            series.ended(record)
        else:
            # It was refused before it counted as in flight, perhaps before its model was known.
            self._metrics.refused(exchange.model_label, record)
        self._history.add(record)
        if exchange.trace is not None:
            exchange.trace.end(record)
        if detail or series is None:
            # In an engine's words, or with a model of which nobody knows whether it is one: perhaps a key.
            more = {"detail": detail} if detail else {}
            log.info("request", **msgspec.structs.asdict(record), **more)
        elif self._records.add(record):
            self._loop.call_later(_FLUSH_SECONDS, self._records.flush)

    def close(self) -> None:
        """Write the lines that wait."""
        self._records.flush()

    def _counts(self, exchange: Exchange) -> tuple[TokenCounts, bool]:
        """What was used, and whether that is only estimated."""
        relay = exchange.relay
        if relay is None or not relay.left:
            return _NOTHING, False
        if relay.head is not None and relay.head.status != 200:
            return _NOTHING, False
        counts = relay.usage()
        if counts is None:
            if not exchange.prompt_estimate:
                return _NOTHING, False
            # The engine worked on it and did not come to say how much.
            self._metrics.uncertain_usage.add((exchange.model_label,))
            return TokenCounts(prompt=exchange.prompt_estimate), True
        if not counts.prompt:
            self._metrics.uncertain_usage.add((exchange.model_label,))
            return TokenCounts(exchange.prompt_estimate, completion=counts.completion), True
        return counts, False


def _record(exchange: Exchange, failure: ErrorCode | None, counts: TokenCounts, now: float) -> Record:
    relay, tenant, engine, arrived = exchange.relay, exchange.tenant, exchange.engine, exchange.arrived
    engine_ms = ttft_ms = None
    bytes_out = 0
    if relay is not None:
        bytes_out, first = relay.bytes_out, relay.first_at
        if first:
            # To the microsecond.
            engine_ms = (first - relay.sent_at) * 1e6 // 1 / 1000
            ttft_ms = (first - arrived) * 1e6 // 1 / 1000
    # In the order of its fields: names would cost as much again.
    return Record(
        exchange.request_id,
        tenant.alias,
        exchange.model[:128],
        exchange.endpoint,
        tenant.priority,
        exchange.stream,
        failure.value if failure else "ok",
        exchange.status or (status_of(failure) if failure else 200),
        exchange.client,
        engine.name if engine is not None else None,
        counts.prompt,
        counts.cached,
        counts.completion,
        exchange.queued_seconds * 1e6 // 1 / 1000,
        engine_ms,
        ttft_ms,
        (now - arrived) * 1e6 // 1 / 1000,
        exchange.bytes_in,
        bytes_out,
        exchange.retries,
    )
