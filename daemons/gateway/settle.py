"""The end of every request, whichever way it took: counted, logged, billed."""

import asyncio
from typing import Protocol

import msgspec
import structlog

from daemons.gateway.errors import ErrorCode, status_of
from daemons.gateway.exchange import Exchange
from daemons.gateway.history import History, Record
from daemons.gateway.metrics import Metrics
from daemons.gateway.relay.sse import TokenCounts
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
        counts, estimated = self._counts(exchange)
        self._count(exchange, counts, outcome, now)
        reservation = exchange.reservation
        if reservation is not None:
            if exchange.relay is not None and exchange.relay.sent_at:
                reservation.settle(counts.prompt, counts.completion)
            else:
                reservation.cancel()
        self._bill.ended(exchange, counts, outcome, now, estimated=estimated)
        relay, tenant = exchange.relay, exchange.tenant
        record = Record(
            request_id=exchange.request_id,
            key=tenant.alias,
            model=exchange.model[:128],
            endpoint=exchange.endpoint,
            priority=tenant.priority,
            stream=exchange.stream,
            outcome=outcome,
            status=exchange.status or (status_of(failure) if failure else 200),
            client=exchange.client,
            engine=exchange.engine.name if exchange.engine else None,
            prompt_tokens=counts.prompt,
            cached_tokens=counts.cached,
            completion_tokens=counts.completion,
            queue_ms=_ms(exchange.queued_seconds),
            engine_ms=_ms(relay.first_at - relay.sent_at) if relay and relay.first_at else None,
            ttft_ms=_ms(relay.first_at - exchange.arrived) if relay and relay.first_at else None,
            duration_ms=_ms(now - exchange.arrived),
            bytes_in=exchange.bytes_in,
            bytes_out=relay.bytes_out if relay else 0,
            retries=exchange.retries,
        )
        self._history.add(record)
        if exchange.trace is not None:
            exchange.trace.end(record)
        if failure is None:
            if self._records.add(record):
                self._loop.call_later(_FLUSH_SECONDS, self._records.flush)
        else:
            log.info("request", **msgspec.structs.asdict(record), **({"detail": detail} if detail else {}))

    def close(self) -> None:
        """Write the lines that wait."""
        self._records.flush()

    def _counts(self, exchange: Exchange) -> tuple[TokenCounts, bool]:
        """What was used, and whether that is only estimated."""
        relay = exchange.relay
        if relay is None or not relay.sent_at:
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

    def _count(self, exchange: Exchange, counts: TokenCounts, outcome: str, now: float) -> None:
        model, alias = exchange.model_label, exchange.tenant.alias
        metrics, relay = self._metrics, exchange.relay
        metrics.requests.add((model, exchange.endpoint, exchange.tenant.priority, outcome))
        metrics.request_bytes.add((model,), exchange.bytes_in)
        if counts is not _NOTHING:
            metrics.count_tokens(alias, model, counts.prompt, counts.cached, counts.completion)
        series = exchange.series
        if series is None:
            return
        series.in_flight -= 1
        series.duration.observe(now - exchange.arrived)
        if relay is not None:
            metrics.response_bytes.add((model,), relay.bytes_out)
            if relay.first_at:
                ttft = relay.first_at - exchange.arrived
                series.ttft.observe(ttft)
                series.queue.observe(exchange.queued_seconds)
                engine = relay.first_at - relay.sent_at
                series.overhead.observe(max(0.0, ttft - engine - exchange.queued_seconds))


def _ms(seconds: float) -> float:
    """Milliseconds, to the microsecond."""
    return int(seconds * 1e6) / 1000
