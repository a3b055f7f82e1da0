"""Turns the records of a run into its result."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, isnan
from typing import Any, Literal

import msgspec

from daemons.loadtest.client.records import FAILURES, Outcome, Record, Records
from daemons.loadtest.load.plan import Plan, Steps
from daemons.loadtest.measure.histogram import Histogram, bucket_bounds
from daemons.loadtest.measure.objectives import Objective, request_bounds
from daemons.loadtest.measure.results import (
    PERCENTS,
    Check,
    GeneratorHealth,
    Group,
    Latency,
    Result,
    Slice,
)
from daemons.loadtest.measure.statistics import BLOCKS, Blocks, mean_interval, percentile, trend, warmup_end

MAX_CPU = 0.9
"""Share of a core above which the generator cannot be trusted to be on time."""
_DIFFERENT = 0.1
"""Relative difference from the rest that makes the beginning a warm-up."""
_BLOCK_METRICS = ("ttft", "itl", "tpot", "e2e")


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


class _Sample:
    """A record with its derived latencies."""

    __slots__ = ("gaps", "latencies", "record")

    def __init__(self, record: Record, gaps: "array[float]") -> None:
        self.record = record
        self.gaps = gaps
        self.latencies = _latencies(record)


def _latencies(record: Record) -> dict[str, float]:
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


def analyse(measured: Measured) -> Result:
    """The result of a run."""
    plan = measured.plan
    samples = [_Sample(record, gaps) for record, gaps in measured.records.with_gaps()]
    end = _window_end(measured)
    start, warmup, steady, note = _steady_state(plan, samples, end)
    kept = [s for s in samples if start <= s.record.intended <= end]
    window = (start, max(end, start + 1e-9))
    health = _health(measured)
    invalid = _invalid(plan, health)
    blocks = {metric: _blocks(kept, metric, window) for metric in _BLOCK_METRICS}
    groups = _groups(measured, plan, samples, kept, window, blocks)
    return Result(
        started=measured.started,
        target=measured.target,
        model=measured.model,
        plan=plan.model_dump(mode="json"),
        stopped_by=measured.stopped_by,
        seconds=measured.ended,
        window=window,
        warmup=warmup,
        steady=steady,
        steady_note=note,
        valid=not invalid,
        invalid=invalid,
        warnings=_warnings(samples),
        generator=health,
        groups=groups,
        checks=[_check(objective, groups) for objective in plan.objectives],
        series=_series(measured, samples),
        blocks={metric: [list(h) for h in histograms] for metric, histograms in blocks.items()},
        rate_blocks=_rate_blocks(samples, window),
    )


def _window_end(measured: Measured) -> float:
    planned = measured.plan.sending_seconds
    if measured.stopped_by != "complete":
        return measured.sending_ended
    return measured.ended if planned is None else planned


def _steady_state(plan: Plan, samples: Sequence[_Sample], end: float) -> tuple[float, str, bool, str]:
    """Where the window begins, how that was decided, whether the state was steady, and what was seen."""
    ordered = sorted(
        (s.record.intended, s.latencies.get("ttft", s.latencies.get("e2e", 0.0)))
        for s in samples
        if s.latencies and s.record.intended <= end
    )
    if plan.warmup is not None:
        start, how = plan.warmup, f"{plan.warmup:g} s, as given"
    elif not plan.stationary or plan.requests is not None:
        start, how = 0.0, "none: every request of this load counts"
    else:
        start, how = _detected_warmup(ordered, end)
    kept = [value for at, value in ordered if at >= start]
    size = max(1, len(kept) // 20)
    means = [sum(kept[i : i + size]) / size for i in range(0, len(kept) - size + 1, size)]
    if not plan.stationary:
        return start, how, True, "the load changes by design"
    if len(kept) < 100:
        return start, how, True, "too few requests to judge"
    half = len(means) // 2
    before, after = sum(means[:half]) / half, sum(means[half:]) / (len(means) - half)
    rises = trend(means) > 3 and after > before * 1.2
    if rises:
        text = f"latency kept rising ({before * 1e3:.0f} to {after * 1e3:.0f} ms): the target is saturated, and percentiles depend on how long the run is"
        return start, how, False, text
    return start, how, True, "steady"


def _detected_warmup(ordered: Sequence[tuple[float, float]], end: float) -> tuple[float, str]:
    if len(ordered) < 200 or end < 5:
        return 0.0, "none: too short to detect one"
    size = len(ordered) // 100
    means = [sum(v for _, v in ordered[i : i + size]) / size for i in range(0, len(ordered) - size + 1, size)]
    cut = warmup_end(means)
    if cut is None:
        return 0.0, "none left out: no steady state was found"
    before, after = means[:cut], means[cut:]
    settled = sum(after) / len(after)
    # The rule always finds some cut in noise; one counts where the beginning really was different.
    if not before or abs(sum(before) / len(before) - settled) < _DIFFERENT * settled:
        return 0.0, "none: the beginning was like the rest"
    start = ordered[cut * size][0]
    return start, f"{start:.1f} s, detected (MSER)"


def _health(measured: Measured) -> GeneratorHealth:
    columns = measured.records.columns
    lags = sorted(s - d for s, d in zip(columns["sent"], columns["due"], strict=True) if not isnan(s))
    loop = sorted(measured.loop_lags)
    gauges = measured.gauges
    spent = gauges[-1].cpu_seconds - gauges[0].cpu_seconds if len(gauges) > 1 else 0.0
    span = gauges[-1].at - gauges[0].at if len(gauges) > 1 else 0.0
    return GeneratorHealth(
        dispatch_p50=percentile(lags, 50),
        dispatch_p99=percentile(lags, 99),
        dispatch_max=lags[-1] if lags else 0.0,
        loop_p99=percentile(loop, 99),
        cpu_share=spent / span if span > 0 else 0.0,
        redialled=sum(columns["redialled"]),
    )


def _invalid(plan: Plan, health: GeneratorHealth) -> list[str]:
    found = []
    if health.dispatch_p99 > plan.max_lag:
        found.append(
            f"the generator sent late: dispatch lag P99 {health.dispatch_p99 * 1e3:.1f} ms is above "
            f"{plan.max_lag * 1e3:g} ms; run it on an idle machine, or lower the load"
        )
    if health.cpu_share > MAX_CPU:
        found.append(
            f"the generator used {health.cpu_share:.0%} of its core: it measured itself; lower the load, or "
            "share it between several machines"
        )
    return found


def _warnings(samples: Sequence[_Sample]) -> list[str]:
    unsent = sum(1 for s in samples if isnan(s.record.sent))
    abandoned = sum(1 for s in samples if s.record.outcome == Outcome.ABANDONED) - unsent
    silent = sum(1 for s in samples if s.record.outcome == Outcome.OK and s.record.prompt_tokens < 0)
    found = []
    if unsent:
        found.append(f"{unsent} requests were due but never sent: the true percentiles are higher than shown")
    if abandoned:
        found.append(f"{abandoned} requests were still running at the end and are in no percentile")
    if silent:
        found.append(f"{silent} answers had no usage: their tokens are not counted")
    return found


# -- groups


def _groups(
    measured: Measured,
    plan: Plan,
    samples: Sequence[_Sample],
    kept: Sequence[_Sample],
    window: tuple[float, float],
    blocks: Mapping[str, Sequence[Histogram]],
) -> list[Group]:
    bounds = [request_bounds(plan.objectives, name) for name in measured.types]
    groups = [_group("all", "all", samples, kept, window, bounds, blocks)]
    for index, name in enumerate(measured.types):
        of_type = [s for s in samples if s.record.type == index]
        if of_type and len(measured.types) > 1:
            inside = [s for s in kept if s.record.type == index]
            type_blocks = {m: _blocks(inside, m, window) for m in ("ttft", "e2e")}
            groups.append(_group("type", name, of_type, inside, window, bounds, type_blocks))
    for index, key in enumerate(plan.keys):
        if len(plan.keys) > 1:
            of_key = [s for s in samples if s.record.key == index]
            inside = [s for s in kept if s.record.key == index]
            groups.append(_group("key", key.name, of_key, inside, window, bounds, {}))
    if isinstance(plan.load, Steps):
        at = 0.0
        for number, step in enumerate(plan.load.steps, 1):
            span = (at, at + step.seconds)
            inside = [s for s in samples if span[0] <= s.record.intended < span[1]]
            groups.append(_group("step", f"{number}: {step.rate:g}/s", samples, inside, span, bounds, {}))
            at = span[1]
    return groups


def _group(
    kind: Literal["all", "type", "key", "step"],
    name: str,
    samples: Sequence[_Sample],
    kept: Sequence[_Sample],
    window: tuple[float, float],
    bounds: Sequence[Mapping[str, float]],
    blocks: Mapping[str, Sequence[Histogram]],
) -> Group:
    seconds = window[1] - window[0]
    ok = [s for s in kept if s.record.outcome == Outcome.OK]
    with_usage = [s for s in ok if s.record.prompt_tokens >= 0]
    ended = sum(
        1 for s in samples if s.record.outcome == Outcome.OK and window[0] <= s.record.end <= window[1]
    )
    good = sum(1 for s in ok if s.latencies and _is_good(s, bounds[s.record.type]))
    outcomes = {o.name.lower(): sum(1 for s in kept if s.record.outcome == o) for o in Outcome}
    return Group(
        kind=kind,
        name=name,
        requests=len(kept),
        ok=len(ok),
        outcomes={name: count for name, count in outcomes.items() if count},
        request_rate=ended / seconds,
        output_token_rate=sum(_tokens_within(s.record, *window) for s in samples) / seconds,
        prompt_token_rate=sum(s.record.prompt_tokens for s in with_usage) / seconds,
        prompt_tokens=sum(s.record.prompt_tokens for s in with_usage),
        output_tokens=sum(s.record.output_tokens for s in with_usage),
        cached_tokens=sum(s.record.cached_tokens for s in with_usage),
        without_usage=len(ok) - len(with_usage),
        good=good,
        goodput=good / seconds,
        latencies=_distributions(kept, blocks),
    )


def _is_good(sample: _Sample, bounds: Mapping[str, float]) -> bool:
    for metric, bound in bounds.items():
        if metric == "itl":
            if sample.gaps and max(sample.gaps) > bound:
                return False
        elif sample.latencies.get(metric, 0.0) > bound:
            return False
    return True


def _tokens_within(record: Record, start: float, end: float) -> float:
    """Output tokens between two times, taking a stream's pace as even; a whole answer counts at its end."""
    if record.output_tokens <= 0:
        return 0.0
    if isnan(record.first) or record.last <= record.first:
        return record.output_tokens if start <= record.end <= end else 0.0
    overlap = min(end, record.last) - max(start, record.first)
    return record.output_tokens * max(0.0, overlap) / (record.last - record.first)


def _distributions(kept: Sequence[_Sample], blocks: Mapping[str, Sequence[Histogram]]) -> dict[str, Latency]:
    found: dict[str, Latency] = {}
    for metric in ("ttft", "tpot", "e2e", "normalised", "ttft_from_send", "e2e_from_send"):
        values = sorted(s.latencies[metric] for s in kept if metric in s.latencies)
        if values:
            found[metric] = _latency(values, blocks.get(metric))
    gaps = Histogram()
    for sample in kept:
        if sample.latencies:
            gaps.extend(sample.gaps)
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


# -- blocks, course, objectives


def _block_of(at: float, window: tuple[float, float]) -> int:
    return min(BLOCKS - 1, max(0, int((at - window[0]) / (window[1] - window[0]) * BLOCKS)))


def _blocks(kept: Sequence[_Sample], metric: str, window: tuple[float, float]) -> list[Histogram]:
    blocks = [Histogram() for _ in range(BLOCKS)]
    for sample in kept:
        block = blocks[_block_of(sample.record.intended, window)]
        if metric == "itl":
            if sample.latencies:
                block.extend(sample.gaps)
        elif metric in sample.latencies:
            block.extend((sample.latencies[metric],))
    return blocks


def _rate_blocks(samples: Iterable[_Sample], window: tuple[float, float]) -> list[float]:
    size = (window[1] - window[0]) / BLOCKS
    edges = [window[0] + size * number for number in range(BLOCKS + 1)]
    records = [s.record for s in samples if s.record.output_tokens > 0]
    return [
        sum(_tokens_within(r, low, high) for r in records) / size
        for low, high in zip(edges, edges[1:], strict=False)
    ]


def _series(measured: Measured, samples: Sequence[_Sample]) -> list[Slice]:
    """The run's course in at most 240 slices of at least a second."""
    width = max(1.0, ceil(measured.ended / 240))
    count = max(1, ceil(measured.ended / width))
    slices = [Slice(at=number * width) for number in range(count)]
    due: list[list[_Sample]] = [[] for _ in slices]

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
        here.output_tokens += _tokens_within(record, here.at, here.at + width)


def _three(ordered: Sequence[float]) -> tuple[float, float, float] | None:
    if not ordered:
        return None
    return percentile(ordered, 50), percentile(ordered, 95), percentile(ordered, 99)


def _check(objective: Objective, groups: Sequence[Group]) -> Check:
    name = objective.type or "all"
    group = next((g for g in groups if g.kind in {"all", "type"} and g.name == name), None)
    if group is None and objective.type is not None and sum(g.kind == "type" for g in groups) == 0:
        group = groups[0]
    measured, interval = _measured(objective, group)
    text = str(objective)
    if measured is None:
        return Check(objective=text, measured=None, met=False, certain=False)
    met = objective.met_by(measured)
    certain = interval is not None and objective.met_by(interval[0]) == objective.met_by(interval[1]) == met
    return Check(objective=text, measured=measured, met=met, certain=certain, interval=interval)


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


def token_rate_interval(result: Result) -> tuple[float, float] | None:
    """Confidence interval of the output token rate."""
    return mean_interval(result.rate_blocks)


def saved(result: Result) -> dict[str, Any]:
    """The result as plain data."""
    plain = msgspec.to_builtins(result)
    assert isinstance(plain, dict)  # noqa: S101 - a Struct becomes a dict
    return plain
