"""Turns the records of a run into its result."""

from collections.abc import Sequence
from math import isnan

from daemons.loadtest.client.records import Outcome
from daemons.loadtest.load.plan import Plan
from daemons.loadtest.measure.course import make_series, rate_blocks
from daemons.loadtest.measure.groups import make_check, make_groups
from daemons.loadtest.measure.results import GeneratorHealth, Result
from daemons.loadtest.measure.samples import Measured, Sample, blocks_of
from daemons.loadtest.measure.statistics import percentile
from daemons.loadtest.measure.window import steady_state, window_end
from daemons.runtime.cli import counted

MAX_CPU = 0.9
"""Share of a core above which the generator cannot be trusted to be on time."""
_NOTHING_OK = (
    "no request succeeded, so that nothing was measured: the reasons are those that were given above"
)
_BLOCK_METRICS = ("ttft", "itl", "tpot", "e2e")


def analyse(measured: Measured) -> Result:
    """The result of a run."""
    plan = measured.plan
    samples = [Sample(record, gaps) for record, gaps in measured.records.with_gaps()]
    end = window_end(measured)
    start, warmup, steady, note = steady_state(plan, samples, end)
    kept = [s for s in samples if start <= s.record.intended <= end]
    window = (start, max(end, start + 1e-9))
    health = _health(measured, window)
    blocks = {metric: blocks_of(kept, metric, window) for metric in _BLOCK_METRICS}
    groups = make_groups(measured, samples, kept, window, blocks)
    refused = groups[0].failed > 0 and not groups[0].ok
    # Refusals come so fast that a closed loop has to be late; there is no latency that it could falsify.
    invalid = [] if refused else _invalid(plan, health)
    return Result(
        started=measured.started,
        target=measured.target,
        model=measured.model,
        plan=plan.model_dump(mode="json"),
        stopped_by=measured.stopped_by,
        seconds=measured.ended,
        sent_requests=sum(not isnan(s.record.sent) for s in samples),
        used_tokens=measured.used_tokens,
        window=window,
        warmup=warmup,
        steady=steady,
        steady_note=note,
        valid=not invalid,
        invalid=invalid,
        warnings=[*measured.notes, *([_NOTHING_OK] if refused else []), *_warnings(samples)],
        reasons=measured.reasons,
        generator=health,
        groups=groups,
        checks=[make_check(objective, groups) for objective in plan.objectives],
        series=make_series(measured, samples),
        blocks={metric: [list(h) for h in histograms] for metric, histograms in blocks.items()},
        rate_blocks=rate_blocks(samples, window),
    )


def _health(measured: Measured, window: tuple[float, float]) -> GeneratorHealth:
    columns = measured.records.columns
    lags = sorted(s - d for s, d in zip(columns["sent"], columns["due"], strict=True) if not isnan(s))
    loop = sorted(measured.loop_lags)
    # Of the window: a long wait for the last answers would make a generator at its limit look idle.
    gauges = [gauge for gauge in measured.gauges if window[0] <= gauge.at <= window[1]]
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


def _warnings(samples: Sequence[Sample]) -> list[str]:
    unsent = sum(1 for s in samples if isnan(s.record.sent))
    abandoned = sum(1 for s in samples if s.record.outcome == Outcome.ABANDONED) - unsent
    silent = sum(1 for s in samples if s.record.outcome == Outcome.OK and s.record.prompt_tokens < 0)
    found = []
    if unsent:
        found.append(
            f"{counted(unsent, 'request')} due but never sent: the true percentiles are higher than shown"
        )
    if abandoned:
        found.append(f"{counted(abandoned, 'request')} still running at the end, and in no percentile")
    if silent:
        found.append(f"{counted(silent, 'answer')} had no usage: these tokens are not counted")
    return found
