"""What the gateway counts, cheap enough for the token path, and how Prometheus sees it.

Label values come from configuration only; what is not configured is ``other``.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from itertools import accumulate
from math import inf, nan

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemons.gateway.admission.queue import Admission
from daemons.gateway.errors import ErrorCode, status_of
from daemons.gateway.history import Record
from daemons.gateway.pool.pool import Pool
from daemons.gateway.settings import PRIORITIES
from daemons.runtime.control import EngineState

OTHER = "other"

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_JUDGED = ("ok", *(code.value for code in ErrorCode if status_of(code) >= 500))
"""What alerts weigh: shown as 0 before it happens, since rate() does not see the first value of a series."""


class Histogram:
    """Counts by upper bound, many values at once.

    Attributes:
        note: takes a value in the cheapest way there is; whoever calls it sees to it that `count` is called
            about every second.
        notes: takes several.
    """

    __slots__ = ("_bounds", "_counts", "_edges", "_noted", "_total", "note", "notes")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        # No number is at or below a nan.
        self._edges = (nan, *bounds, inf)
        self._counts = [0] * (len(bounds) + 1)
        self._noted: list[float] = []
        self.note = self._noted.append
        self.notes = self._noted.extend
        self._total = 0.0

    def count(self) -> None:
        """Put what was noted into the buckets."""
        left = self._noted.copy()
        self._noted.clear()
        self._total += sum(left)
        # One bucket after the other, first that of a value from their midst: most lie in one or two, and
        # sorting all of them takes four times as long.
        while left:
            bucket = bisect_left(self._bounds, left[len(left) // 2])
            low, high = self._edges[bucket : bucket + 2]
            others = [value for value in left if value > high or value <= low]
            self._counts[bucket] += len(left) - len(others)
            left = others

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        self.count()
        names = [*map(repr, self._bounds), "+Inf"]
        return list(zip(names, accumulate(self._counts), strict=True))

    @property
    def total(self) -> float:
        """Sum of the values."""
        self.count()
        return self._total

    def state(self) -> "HistogramState":
        """All of it."""
        self.count()
        return HistogramState(self._counts, self._total)

    def add(self, state: "HistogramState") -> None:
        """Count what another histogram has counted; one of a release with other bounds has nothing to add."""
        if len(state.counts) == len(self._counts):
            self._counts = [a + b for a, b in zip(self._counts, state.counts, strict=True)]
            self._total += state.total


class HistogramState(msgspec.Struct, frozen=True):
    """A histogram, to be told to another process."""

    counts: list[int]
    total: float


class SeriesState(msgspec.Struct, frozen=True):
    """A series, to be told to another process."""

    labels: tuple[str, str, str]
    in_flight: int
    histograms: dict[str, HistogramState]


class State(msgspec.Struct, frozen=True):
    """Everything that is counted, to be told to another process."""

    counters: dict[str, list[tuple[tuple[str, ...], float]]]
    series: list[SeriesState]


class Series:
    """What is counted by model, endpoint and class; the `Observer` of its relays.

    Attributes:
        in_flight: requests being served.
        ended: takes a request that has ended.
    """

    __slots__ = (
        "_ended",
        "duration",
        "ended",
        "engine_ttft",
        "first",
        "gap",
        "in_flight",
        "inter_token",
        "overhead",
        "queue",
        "ttft",
    )

    def __init__(self) -> None:
        self.ttft = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.engine_ttft = Histogram(SECONDS)
        self.overhead = Histogram(SHORT)
        self.inter_token = Histogram(SHORT)
        self.duration = Histogram(SECONDS)
        self.in_flight = 0
        self._ended: list[Record] = []
        self.ended = self._ended.append
        self.first = self.engine_ttft.note
        self.gap = self.inter_token.note

    def gather(self) -> list[Record]:
        """Count what was noted; the requests that have ended since the last time."""
        ended = self._ended.copy()
        self._ended.clear()
        self.duration.notes([record.duration_ms / 1000 for record in ended])
        answered = [record for record in ended if record.ttft_ms is not None]
        self.ttft.notes([(record.ttft_ms or 0.0) / 1000 for record in answered])
        self.queue.notes([record.queue_ms / 1000 for record in answered])
        self.overhead.notes(
            [((r.ttft_ms or 0.0) - (r.engine_ms or 0.0) - r.queue_ms) / 1000 for r in answered]
        )
        for histogram in (
            self.ttft,
            self.queue,
            self.engine_ttft,
            self.overhead,
            self.inter_token,
            self.duration,
        ):
            histogram.count()
        return ended


class Counter(dict[tuple[str, ...], float]):
    """A counter by label values."""

    def add(self, labels: tuple[str, ...], by: float = 1) -> None:
        """Count."""
        self[labels] = self.get(labels, 0) + by


_KINDS = ("prompt", "cached", "completion")


def _tokens_by_key(records: Iterable[Record]) -> dict[str, tuple[int, int, int]]:
    """Tokens of each kind."""
    by_key: dict[str, list[Record]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(record)
    return {
        key: (
            sum([record.prompt_tokens for record in of_key]),
            sum([record.cached_tokens for record in of_key]),
            sum([record.completion_tokens for record in of_key]),
        )
        for key, of_key in by_key.items()
    }


_COUNTERS = {
    "requests": ("Requests by how they ended", ("model", "endpoint", "class", "outcome")),
    "http_responses": ("Responses by HTTP status", ("status",)),
    "auth_failures": ("Requests without a valid key", ("reason",)),
    "rate_limited": ("Requests over a limit of their key or address", ("key", "reason")),
    "tokens": ("Tokens as counted by the engines", ("key", "model", "kind")),
    "request_bytes": ("Bytes of request bodies", ("model",)),
    "response_bytes": ("Bytes of answers", ("model",)),
    "retries": ("Requests sent again to an engine", ("model", "reason")),
    "uncertain_usage": ("Answers whose tokens the engine did not count, and were estimated", ("model",)),
}

_HISTOGRAMS = {
    "ttft": ("time_to_first_token_seconds", "From the request's arrival to the first piece of its answer"),
    "queue": ("queue_seconds", "Waiting for a place at an engine; part of the time to first token"),
    "engine_ttft": ("engine_first_token_seconds", "The engine's part of the time to first token"),
    "overhead": ("overhead_seconds", "The gateway's own part of the time to first token"),
    "inter_token": ("inter_token_seconds", "Between two pieces of a streamed answer"),
    "duration": ("request_seconds", "From a request's arrival to the end of its answer"),
}


class Metrics(Collector):
    """Everything the gateway counts.

    What every request adds to is only noted, and counted when somebody asks.

    Attributes:
        answered: inference requests whose answer had status 200.
    """

    def __init__(self) -> None:
        self.answered = 0
        self.requests = Counter()
        self.http_responses = Counter()
        self.auth_failures = Counter()
        self.rate_limited = Counter()
        self.tokens = Counter()
        self.request_bytes = Counter()
        self.response_bytes = Counter()
        self.retries = Counter()
        self.uncertain_usage = Counter()
        self._series: dict[tuple[str, str, str], Series] = {}

    def series(self, model: str, endpoint: str, priority: str) -> Series:
        """The histograms of this model, endpoint and class."""
        labels = (model, endpoint, priority)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Series()
            self._expect(labels)
        return series

    def expect(self, models: Iterable[str]) -> None:
        """Show chats with `models` before there are any; other endpoints are shown once they are used."""
        for model in models:
            for priority in PRIORITIES:
                self._expect((model, "chat", priority))

    def _expect(self, labels: tuple[str, str, str]) -> None:
        for outcome in _JUDGED:
            self.requests.setdefault((*labels, outcome), 0)

    def refused(self, model: str, record: Record) -> None:
        """A request was refused before it had a series."""
        self.requests.add((model, record.endpoint, record.priority, record.outcome))
        self.request_bytes.add((model,), record.bytes_in)

    def gather(self) -> None:
        """Count the requests that have ended, all at once; called about every second, too."""
        for (model, endpoint, priority), series in self._series.items():
            ended = series.gather()
            if not ended:
                continue
            for outcome, count in Counts([record.outcome for record in ended]).items():
                self.requests.add((model, endpoint, priority, outcome), count)
            self.request_bytes.add((model,), sum([record.bytes_in for record in ended]))
            self.response_bytes.add((model,), sum([record.bytes_out for record in ended]))
            for key, counts in _tokens_by_key(ended).items():
                for kind, count in zip(_KINDS, counts, strict=True):
                    if count:
                        self.tokens.add((key, model, kind), count)
        if self.answered:
            self.http_responses.add(("200",), self.answered)
            self.answered = 0

    def state(self) -> State:
        """Everything counted so far."""
        self.gather()
        return State(
            {name: list(getattr(self, name).items()) for name in _COUNTERS},
            [
                SeriesState(
                    labels, series.in_flight, {name: getattr(series, name).state() for name in _HISTOGRAMS}
                )
                for labels, series in self._series.items()
            ],
        )

    def add(self, state: State) -> None:
        """Count what another process has counted; what it does not know or knows differently is left out."""
        for name, values in state.counters.items():
            if name in _COUNTERS:
                counter: Counter = getattr(self, name)
                for labels, value in values:
                    counter.add(labels, value)
        for told in state.series:
            series = self.series(*told.labels)
            series.in_flight += told.in_flight
            for name, histogram in told.histograms.items():
                if name in _HISTOGRAMS:
                    getattr(series, name).add(histogram)

    def collect(self) -> Iterable[Metric]:
        """Every family."""
        self.gather()
        for name, (text, labels) in _COUNTERS.items():
            counter = CounterMetricFamily(f"llm_gateway_{name}", text, labels=labels)
            for values, value in getattr(self, name).items():
                counter.add_metric(values, value)
            yield counter
        for attribute, (name, text) in _HISTOGRAMS.items():
            yield self._histogram(attribute, name, text)
        in_flight = GaugeMetricFamily(
            "llm_gateway_requests_in_flight", "Requests being served", labels=("model", "endpoint", "class")
        )
        for values, series in self._series.items():
            in_flight.add_metric(values, series.in_flight)
        yield in_flight

    def _histogram(self, attribute: str, name: str, text: str) -> Metric:
        family = HistogramMetricFamily(f"llm_gateway_{name}", text, labels=("model", "endpoint", "class"))
        for values, series in self._series.items():
            histogram: Histogram = getattr(series, attribute)
            family.add_metric(values, histogram.buckets(), histogram.total)
        return family


class PoolCollector(Collector):
    """The engines and the queue, as they are when they are asked for."""

    def __init__(self, pool: Pool, admission: Admission) -> None:
        self._pool = pool
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        state = GaugeMetricFamily(
            "llm_gateway_engine_state", "1 for the state an engine is in", labels=("engine", "state")
        )
        flight = GaugeMetricFamily(
            "llm_gateway_engine_in_flight", "Requests that hold a place at an engine", labels=("engine",)
        )
        for engine in self._pool.engines:
            flight.add_metric((engine.name,), engine.in_flight)
            for possible in EngineState:
                state.add_metric((engine.name, possible.value), float(engine.state is possible))
        yield from (state, flight)
        depth = GaugeMetricFamily(
            "llm_gateway_queue_depth", "Requests waiting for a place", labels=("model", "class")
        )
        for model in self._pool.models:
            for priority, waiting in self._admission.waiting(model).items():
                depth.add_metric((model, priority), waiting)
        yield depth


def register(registry: CollectorRegistry, *collectors: Collector) -> None:
    """Make `registry` show `collectors`."""
    for collector in collectors:
        registry.register(collector)
