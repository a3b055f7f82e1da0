"""Records with the latencies that follow from them."""

from array import array  # noqa: TC003 - msgspec reads the annotations
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import isnan

import msgspec

from daemons.loadtest.client.records import Outcome, Record, Records
from daemons.loadtest.load.plan import Plan
from daemons.loadtest.measure.histogram import Histogram
from daemons.loadtest.measure.statistics import BLOCKS


class Gauge(msgspec.Struct):
    """The generator's own state at a time."""

    at: float
    in_flight: int
    backlog: int
    cpu_seconds: float


class Measured(msgspec.Struct, kw_only=True):
    """Everything a run left behind."""

    plan: Plan
    started: str
    target: str
    model: str
    types: list[str]
    records: Records
    loop_lags: "array[float]"
    gauges: list[Gauge]
    stopped_by: str
    sending_ended: float
    ended: float
    used_tokens: int = 0
    notes: list[str] = []
    """What is to be known about the workload."""
    reasons: dict[str, str] = {}
    """By outcome, an example of why."""


class Sample:
    """A record with its derived latencies."""

    __slots__ = ("gaps", "latencies", "record")

    def __init__(self, record: Record, gaps: "array[float]") -> None:
        self.record = record
        self.gaps = gaps
        self.latencies = latencies_of(record)


def latencies_of(record: Record) -> dict[str, float]:
    """Latencies of a successful request whose pace the server set; none of any other."""
    if record.outcome != Outcome.OK or record.slow:
        return {}
    found = {"e2e": record.end - record.intended, "e2e_from_send": record.end - record.sent}
    if not isnan(record.first):
        found["ttft"] = record.first - record.intended
        found["ttft_from_send"] = record.first - record.sent
        if record.output_tokens > 1:
            found["tpot"] = (record.last - record.first) / (record.output_tokens - 1)
    if record.output_tokens > 0:
        found["normalised"] = found["e2e"] / record.output_tokens
    return found


def tokens_within(record: Record, start: float, end: float) -> float:
    """Output tokens between two times, taking a stream's pace as even; a whole answer counts at its end."""
    if record.output_tokens <= 0:
        return 0.0
    if isnan(record.first) or record.last <= record.first:
        return record.output_tokens if start <= record.end <= end else 0.0
    overlap = min(end, record.last) - max(start, record.first)
    return record.output_tokens * max(0.0, overlap) / (record.last - record.first)


def _block_of(at: float, window: tuple[float, float]) -> int:
    return min(BLOCKS - 1, max(0, int((at - window[0]) / (window[1] - window[0]) * BLOCKS)))


def blocks_of(kept: Sequence[Sample], metric: str, window: tuple[float, float]) -> list[Histogram]:
    """The values of `metric` in each of the window's blocks."""
    parts: list[list[Sample]] = [[] for _ in range(BLOCKS)]
    for sample in kept:
        parts[_block_of(sample.record.intended, window)].append(sample)
    return [Histogram.of(values_of(part, metric)) for part in parts]


def values_of(kept: Iterable[Sample], metric: str) -> Iterator[float]:
    """All values of `metric` in seconds; ``itl`` has one for each gap."""
    if metric == "itl":
        return chain.from_iterable(sample.gaps for sample in kept if sample.latencies)
    return (sample.latencies[metric] for sample in kept if metric in sample.latencies)
