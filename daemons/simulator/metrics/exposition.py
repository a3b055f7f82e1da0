"""Renders engine counters as vLLM's metric families; which ones is the business of a release's module."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemons.simulator.metrics.http_server import HttpMetrics
from daemons.simulator.model.engine import Engine
from daemons.simulator.model.stats import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a release's module turns into families.

    Attributes:
        engine: the model.
        labels: those of every family, ``model_name`` for one.
        cache_config: labels of ``cache_config_info``.
        created: seconds since the epoch of the counters' birth.
        now: seconds since the epoch.
    """

    engine: Engine
    labels: Labels
    cache_config: Labels
    created: float
    now: float


class Release(Protocol):
    """The families of one release of vLLM."""

    def families(self, snapshot: Snapshot) -> Iterable[Metric]:
        """All of them, in the release's order."""


def gauge(name: str, text: str, rows: Sequence[tuple[Labels, float]]) -> Metric:
    """A gauge with one sample for each of `rows`."""
    family = Metric(name, text, "gauge")
    for labels, value in rows:
        family.add_sample(name, dict(labels), value)
    return family


def counter(name: str, text: str, rows: Sequence[tuple[Labels, float]], created: float | None) -> Metric:
    """A counter; `name` without ``_total``; `created` None leaves ``_created`` out."""
    family = Metric(name, text, "counter")
    for labels, value in rows:
        family.add_sample(f"{name}_total", dict(labels), value)
        if created is not None:
            family.add_sample(f"{name}_created", dict(labels), created)
    return family


def histogram(
    family_of: tuple[str, str],
    labels: Labels,
    counted: Histogram,
    bounds: Sequence[float],
    created: float | None,
) -> Metric:
    """A histogram, by name and help, with those of its buckets that are in `bounds`."""
    name, text = family_of
    family = Metric(name, text, "histogram")
    rows = counted.below(bounds)
    for bound, value in rows:
        family.add_sample(f"{name}_bucket", {**labels, "le": bound}, value)
    family.add_sample(f"{name}_count", dict(labels), rows[-1][1])
    family.add_sample(f"{name}_sum", dict(labels), counted.sum)
    if created is not None:
        family.add_sample(f"{name}_created", dict(labels), created)
    return family


class _Families(Collector):
    def __init__(self, page: "MetricsPage") -> None:
        self._page = page

    def collect(self) -> Iterable[Metric]:
        return self._page.families()


class MetricsPage:
    """The whole ``/metrics``: the process, the engine, the HTTP server."""

    def __init__(
        self,
        release: Release,
        engine: Engine,
        labels: Labels,
        cache_config: Labels,
        clock: Callable[[], float],
    ) -> None:
        self._release = release
        self._engine = engine
        self._labels = labels
        self._cache_config = cache_config
        self._clock = clock
        self._created = clock()
        self._registry = CollectorRegistry()
        GCCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        ProcessCollector(registry=self._registry)
        self._registry.register(_Families(self))
        self.http = HttpMetrics(self._registry)

    def families(self) -> Iterable[Metric]:
        """The engine's families, as of now."""
        snapshot = Snapshot(self._engine, self._labels, self._cache_config, self._created, self._clock())
        return self._release.families(snapshot)

    def render(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)
