"""Figures by group of requests: all, each prompt type, each key, each step of the load."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from daemons.loadtest.client.records import Outcome
from daemons.loadtest.load.plan import Steps
from daemons.loadtest.measure.histogram import Histogram, bucket_bounds
from daemons.loadtest.measure.objectives import Objective, request_bounds
from daemons.loadtest.measure.results import PERCENTS, Check, Group, Latency
from daemons.loadtest.measure.samples import Measured, Sample, blocks_of, tokens_within, values_of
from daemons.loadtest.measure.statistics import Blocks, percentile

Window = tuple[float, float]
Blocked = Mapping[str, Sequence[Histogram]]
"""By metric, its values in consecutive blocks of the window."""
_NO_BLOCKS: Blocked = {}
_TOO_SLOW = ("abandoned", "timeout", "stall")
"""Outcomes of requests that have no latency only because theirs was too long to be measured."""
Part = tuple[Literal["all", "type", "key", "step"], str]
"""Kind and name of a group."""


def make_groups(
    measured: Measured, samples: Sequence[Sample], kept: Sequence[Sample], window: Window, blocks: Blocked
) -> list[Group]:
    """All groups; `kept` are the samples of the window, `blocks` theirs; the group of all comes first."""
    plan = measured.plan
    maker = _Maker([request_bounds(plan.objectives, name) for name in measured.types], window)
    groups = [maker.group(("all", "all"), samples, kept, blocks)]
    if len(measured.types) > 1:
        for index, name in enumerate(measured.types):
            of_type = [s for s in samples if s.record.type == index]
            inside = [s for s in kept if s.record.type == index]
            if of_type:
                sure = {metric: blocks_of(inside, metric, window) for metric in ("ttft", "e2e")}
                groups.append(maker.group(("type", name), of_type, inside, sure))
    if len(plan.keys) > 1:
        for index, key in enumerate(plan.keys):
            of_key = [s for s in samples if s.record.key == index]
            inside = [s for s in kept if s.record.key == index]
            groups.append(maker.group(("key", key.name), of_key, inside))
    if isinstance(plan.load, Steps):
        groups.extend(_steps(plan.load, maker, samples, window[1]))
    return groups


def _steps(load: Steps, maker: "_Maker", samples: Sequence[Sample], over: float) -> Iterator[Group]:
    """The steps begun before `over`, when the sending ended; it may have cut the last of them short."""
    at = 0.0
    for number, step in enumerate(load.steps, 1):
        end = min(at + step.seconds, over)
        if end <= at:
            return
        inside = [s for s in samples if at <= s.record.intended < end]
        yield maker.over((at, end)).group(("step", f"{number}: {step.rate:g}/s"), samples, inside)
        at = end


class _Maker:
    """Makes groups over a window; `bounds` are the per-request objectives of each prompt type."""

    def __init__(self, bounds: Sequence[Mapping[str, float]], window: Window) -> None:
        self._bounds = bounds
        self._window = window

    def over(self, window: Window) -> "_Maker":
        """The same over another window."""
        return _Maker(self._bounds, window)

    def group(
        self, part: Part, samples: Sequence[Sample], kept: Sequence[Sample], blocks: Blocked = _NO_BLOCKS
    ) -> Group:
        """A group; the latencies that come in blocks get confidence intervals."""
        start, end = self._window
        seconds = end - start
        ok = [s for s in kept if s.record.outcome == Outcome.OK]
        with_usage = [s for s in ok if s.record.prompt_tokens >= 0]
        ended = sum(s.record.outcome == Outcome.OK and start <= s.record.end <= end for s in samples)
        good = sum(self._is_good(s) for s in ok)
        good_ended = sum(start <= s.record.end <= end and self._is_good(s) for s in samples)
        outcomes = Counter(Outcome(s.record.outcome).name.lower() for s in kept)
        return Group(
            kind=part[0],
            name=part[1],
            requests=len(kept),
            ok=len(ok),
            outcomes=dict(outcomes),
            answered=sum(s.record.status > 0 for s in kept),
            request_rate=ended / seconds,
            offered_rate=len(kept) / seconds,
            output_token_rate=sum(tokens_within(s.record, start, end) for s in samples) / seconds,
            prompt_token_rate=sum(s.record.prompt_tokens for s in with_usage) / seconds,
            prompt_tokens=sum(s.record.prompt_tokens for s in with_usage),
            output_tokens=sum(s.record.output_tokens for s in with_usage),
            cached_tokens=sum(s.record.cached_tokens for s in with_usage),
            without_usage=len(ok) - len(with_usage),
            good=good,
            goodput=good_ended / seconds,
            latencies=_distributions(kept, blocks),
        )

    def _is_good(self, sample: Sample) -> bool:
        return bool(sample.latencies) and _meets(sample, self._bounds[sample.record.type])


def _meets(sample: Sample, bounds: Mapping[str, float]) -> bool:
    for metric, bound in bounds.items():
        if metric == "itl":
            if sample.gaps and max(sample.gaps) > bound:
                return False
        elif sample.latencies.get(metric, 0.0) > bound:
            return False
    return True


def _distributions(kept: Sequence[Sample], blocks: Blocked) -> dict[str, Latency]:
    found: dict[str, Latency] = {}
    for metric in ("ttft", "tpot", "e2e", "normalised", "ttft_from_send", "e2e_from_send"):
        values = sorted(values_of(kept, metric))
        if values:
            found[metric] = _latency(values, blocks.get(metric))
    gaps = Histogram()
    if "itl" in blocks:
        for block in blocks["itl"]:
            gaps.add(block)
    else:
        gaps.extend(values_of(kept, "itl"))
    if gaps.total:
        found["itl"] = _latency_of_histogram(gaps, blocks.get("itl"))
    return found


def _latency(ordered: Sequence[float], blocks: Sequence[Histogram] | None) -> Latency:
    p50, p90, p95, p99 = (percentile(ordered, p) for p in PERCENTS)
    return Latency(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=ordered[-1],
        intervals=_intervals(blocks),
        histogram=[(*bucket_bounds(index), count) for index, count in Histogram.of(ordered)],
    )


def _latency_of_histogram(histogram: Histogram, blocks: Sequence[Histogram] | None) -> Latency:
    p50, p90, p95, p99 = (histogram.percentile(p) for p in PERCENTS)
    return Latency(
        count=histogram.total,
        mean=histogram.mean,
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=histogram.max,
        intervals=_intervals(blocks),
        histogram=[(*bucket_bounds(index), count) for index, count in histogram],
    )


def _intervals(blocks: Sequence[Histogram] | None) -> dict[str, tuple[float, float]]:
    if blocks is None:
        return {}
    return {f"p{p:g}": found for p, found in Blocks(blocks).intervals(PERCENTS).items()}


def make_check(objective: Objective, groups: Sequence[Group]) -> Check:
    name = objective.type or "all"
    group = next((g for g in groups if g.kind in {"all", "type"} and g.name == name), None)
    if group is None and objective.type is not None and sum(g.kind == "type" for g in groups) == 0:
        group = groups[0]
    measured, interval = _measured(objective, group)
    text = str(objective)
    if measured is None:
        return Check(objective=text, measured=None, met=False, certain=False)
    met = objective.met_by(measured) and not _hidden(objective, group)
    certain = interval is not None and objective.met_by(interval[0]) == objective.met_by(interval[1]) == met
    return Check(objective=text, measured=measured, met=met, certain=certain, interval=interval)


def _hidden(objective: Objective, group: Group | None) -> bool:
    """Whether so many requests were too slow to be measured that the percentile asked for lies among them."""
    lost = sum(group.outcomes.get(name, 0) for name in _TOO_SLOW) if group is not None else 0
    if group is None or objective.percentile is None or not lost:
        return False
    return lost > (group.ok + lost) * (1 - objective.percentile / 100)


def _measured(objective: Objective, group: Group | None) -> tuple[float | None, tuple[float, float] | None]:
    if group is None or not group.requests:
        return None, None
    if objective.metric == "errors":
        return group.error_share, None
    if objective.metric == "goodput":
        counted = group.ok + group.failed
        return (group.good / counted if counted else None), None
    latency = group.latencies.get(objective.metric)
    if latency is None or objective.percentile is None:
        return None, None
    return latency.at(objective.percentile), latency.intervals.get(f"p{objective.percentile:g}")
