"""Which part of a run the figures are of, and whether the run reached a steady state in it."""

from collections.abc import Sequence

from daemons.loadtest.load.plan import STAGGER, Closed, Plan
from daemons.loadtest.measure.samples import Measured, Sample
from daemons.loadtest.measure.statistics import percentile, trend, warmup_end

_LONG_FILLING = 0.2
"""Share of the run that may be left out for it."""
_DIFFERENT = 0.1
"""Relative difference from the rest that makes the beginning a warm-up."""


def window_end(measured: Measured) -> float:
    planned = measured.plan.sending_seconds
    if measured.stopped_by != "complete":
        return measured.sending_ended
    return measured.ended if planned is None else planned


def steady_state(plan: Plan, samples: Sequence[Sample], end: float) -> tuple[float, str, bool, str]:
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
        if not start:
            start, how = _filling(plan, samples, end, how)
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
        text = (
            f"latency kept rising ({before * 1e3:.0f} to {after * 1e3:.0f} ms): the target is saturated, and "
            "percentiles depend on how long the run is"
        )
        return start, how, False, text
    return start, how, True, "steady"


def _filling(plan: Plan, samples: Sequence[Sample], end: float, how: str) -> tuple[float, str]:
    """Leave out the time until the first answers are back: nothing ends in it, so rates would be too low."""
    ordered = sorted(s.latencies["e2e"] for s in samples if s.latencies)
    start = percentile(ordered, 50) + (STAGGER if isinstance(plan.load, Closed) else 0.0)
    if not ordered or start > _LONG_FILLING * end:
        return 0.0, how
    return start, f"{start:.1f} s, until the first answers were back"


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
