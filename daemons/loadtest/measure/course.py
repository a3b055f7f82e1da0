"""A run's course over time."""

from collections.abc import Iterable, Sequence
from math import ceil, isnan

from daemons.loadtest.client.records import FAILURES, Outcome, Record
from daemons.loadtest.measure.results import Slice
from daemons.loadtest.measure.samples import Measured, Sample, tokens_within
from daemons.loadtest.measure.statistics import BLOCKS, percentile


def make_series(measured: Measured, samples: Sequence[Sample]) -> list[Slice]:
    """The run's course in at most 240 slices of at least a second."""
    width = max(1.0, ceil(measured.ended / 240))
    count = max(1, ceil(measured.ended / width))
    slices = [Slice(at=number * width) for number in range(count)]
    due: list[list[Sample]] = [[] for _ in slices]

    def number(at: float) -> int:
        return min(count - 1, max(0, int(at / width)))

    for sample in samples:
        record = sample.record
        due[number(record.intended)].append(sample)
        if not isnan(record.sent):
            here = slices[number(record.sent)]
            here.sent += 1
            here.lag = max(here.lag, record.sent - record.due)
        ended = slices[number(record.end)]
        ended.ok += record.outcome == Outcome.OK
        ended.failed += record.outcome in FAILURES
        _spread_tokens(slices, record, width)
    for gauge in measured.gauges:
        here = slices[number(gauge.at)]
        here.in_flight = max(here.in_flight, gauge.in_flight)
        here.backlog = max(here.backlog, gauge.backlog)
    for here, those in zip(slices, due, strict=True):
        here.ttft = _three(sorted(s.latencies["ttft"] for s in those if "ttft" in s.latencies))
        here.e2e = _three(sorted(s.latencies["e2e"] for s in those if "e2e" in s.latencies))
    return slices


def _spread_tokens(slices: Sequence[Slice], record: Record, width: float) -> None:
    if record.output_tokens <= 0:
        return
    first = record.end if isnan(record.first) else record.first
    last = record.end if isnan(record.first) else record.last
    for here in slices[max(0, int(first / width)) : int(last / width) + 1]:
        here.output_tokens += tokens_within(record, here.at, here.at + width)


def _three(ordered: Sequence[float]) -> tuple[float, float, float] | None:
    if not ordered:
        return None
    return percentile(ordered, 50), percentile(ordered, 95), percentile(ordered, 99)


def rate_blocks(samples: Iterable[Sample], window: tuple[float, float]) -> list[float]:
    """Output tokens a second in each block of the window."""
    start, end = window
    size = (end - start) / BLOCKS
    found = [0.0] * BLOCKS
    for record in (s.record for s in samples if s.record.output_tokens > 0):
        begun = record.end if isnan(record.first) else record.first
        ended = record.end if isnan(record.first) else record.last
        for number in range(
            max(0, int((begun - start) / size)), min(BLOCKS, int((ended - start) / size) + 1)
        ):
            low = start + number * size
            found[number] += tokens_within(record, low, low + size)
    return [tokens / size for tokens in found]
