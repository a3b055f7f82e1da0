"""What Prometheus sees of limits and ledger, as it is when it is asked for."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemons.gateway.tenants.ledger.ledger import Ledger
from daemons.gateway.tenants.limiter import Limiter


class TenantsCollector(Collector):
    """The ledger's health, and what keys have in flight."""

    def __init__(self, limiter: Limiter, ledger: Ledger) -> None:
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
        flight = GaugeMetricFamily(
            "llm_gateway_key_in_flight", "Requests that hold a reservation of their key", labels=("key",)
        )
        for alias, account in self._limiter.keys.items():
            flight.add_metric((alias,), account.in_flight)
        yield flight
