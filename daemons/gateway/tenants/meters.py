"""What Prometheus sees of limits and ledger, as it is when it is asked for."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemons.gateway.tenants.ledger.ledger import Ledger
from daemons.gateway.tenants.limiter import Limiter
from daemons.gateway.tenants.reserve import Limits
from daemons.gateway.tenants.ring import KeyRing
from daemons.gateway.tenants.shared import SharedLimits


class TenantsCollector(Collector):
    """The ledger's health, what keys have in flight, and how near to their limits they are."""

    def __init__(
        self, ring: KeyRing, limiter: Limiter, ledger: Ledger, limits: Limits, shared: SharedLimits | None
    ) -> None:
        self._limits = limits
        self._shared = shared
        self._ring = ring
        self._limiter = limiter
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        ledger = self._ledger
        for name, text, value in (
            ("up", "1 while the ledger can be written", float(not ledger.failing)),
            ("pending_rows", "Ended requests that are not in the ledger yet", ledger.pending),
            ("delay_seconds", "Age of the oldest of them", ledger.delay),
        ):
            yield GaugeMetricFamily(f"llm_gateway_ledger_{name}", text, value=value)
        for name, text, count in (
            ("rows", "Requests written to the ledger", ledger.written),
            ("dropped_rows", "Requests that the ledger had no room to wait for", ledger.dropped),
            ("failures", "Attempts to write the ledger that failed", ledger.failures),
        ):
            yield CounterMetricFamily(f"llm_gateway_ledger_{name}", text, value=count)
        yield CounterMetricFamily(
            "llm_gateway_limited_alone",
            "Requests let in by the limits of this gateway alone, because shared ones did not answer",
            value=self._limits.alone,
        )
        if self._shared is not None:
            yield GaugeMetricFamily(
                "llm_gateway_shared_limits_up", "1 while limits are shared", value=float(self._shared.up)
            )
        flight = GaugeMetricFamily(
            "llm_gateway_key_in_flight", "Requests that hold a reservation of their key", labels=("key",)
        )
        used = GaugeMetricFamily(
            "llm_gateway_key_limit_used_ratio",
            "Share of a limit that its key uses; limit: concurrency, requests, tokens, day, month",
            labels=("key", "limit"),
        )
        now, at, limits = self._limiter.monotonic(), self._limiter.periods(), self._ring.limits
        for alias, account in self._limiter.keys.items():
            flight.add_metric((alias,), account.in_flight)
            if alias in limits:
                for limit, share in account.used(limits[alias], now, at):
                    used.add_metric((alias, limit), share)
        yield from (flight, used)
