"""Counters that alerts look at are there before anything happens."""

from prometheus_client import CollectorRegistry

from daemons.gateway.errors import ErrorCode, status_of
from daemons.gateway.metrics import Metrics

NAME = "llm_gateway_requests_total"


def shown(metrics: Metrics, endpoint: str, outcome: str) -> float | None:
    """What a scrape tells of requests for ``m`` in the class ``default``."""
    registry = CollectorRegistry()
    registry.register(metrics)
    labels = {"model": "m", "endpoint": endpoint, "class": "default", "outcome": outcome}
    return registry.get_sample_value(NAME, labels)


def test_failures_of_configured_models_are_counted_from_zero() -> None:
    metrics = Metrics()
    metrics.expect(["m"])
    for code in ErrorCode:
        assert shown(metrics, "chat", code) == (0 if status_of(code) >= 500 else None)
    assert shown(metrics, "embeddings", "no_engine") is None


def test_an_endpoint_that_is_used_has_its_failures_from_zero_on() -> None:
    metrics = Metrics()
    metrics.requests.add(("m", "embeddings", "default", "no_engine"))
    metrics.series("m", "embeddings", "default")
    assert shown(metrics, "embeddings", "no_engine") == 1
    assert shown(metrics, "embeddings", "engine_lost") == 0


def test_what_was_counted_elsewhere_is_added_to_what_is_expected() -> None:
    metrics, other = Metrics(), Metrics()
    metrics.expect(["m"])
    other.requests.add(("m", "chat", "default", "no_engine"))
    metrics.add(other.state())
    assert shown(metrics, "chat", "no_engine") == 1
