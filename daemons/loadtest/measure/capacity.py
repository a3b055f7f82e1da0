"""Finds the highest request rate that meets the objectives: doubling, then bisection, each rate a run of its own."""

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from daemons.loadtest.measure.results import Result

PRECISION = 0.1
"""The search ends when the failing rate is at most this share above the passing one."""
MAX_PROBES = 16
_REPEATS = 2

Verdict = Literal["met", "missed", "invalid"]


class Probe(msgspec.Struct, kw_only=True):
    """One rate that was tried."""

    rate: float
    verdict: Verdict
    why: str
    result: Result


class Capacity(msgspec.Struct, kw_only=True):
    """The answer: objectives hold at `low` and do not at `high` (requests a second)."""

    low: float | None
    """Highest rate that met the objectives; None when none did."""
    high: float | None
    """Lowest rate that missed them; None when the generator's own limit or the ceiling came first."""
    probes: list[Probe]
    note: str = ""


def judge(result: Result, rate: float) -> tuple[Verdict, str]:
    """Whether a run meets its objectives; one that is invalid says nothing about the target."""
    if not result.valid:
        return "invalid", "; ".join(result.invalid)
    missed = [check for check in result.checks if not check.met]
    if missed:
        shown = ", ".join(
            f"{c.objective} (measured {c.measured:.4g})" if c.measured is not None else c.objective
            for c in missed
        )
        return "missed", shown
    if not result.steady:
        return "missed", result.steady_note
    if (
        result.overall.failed
        and not any("errors" in c.objective for c in result.checks)
        and result.overall.error_share > 0.01
    ):
        return "missed", f"{result.overall.error_share:.1%} of the requests failed"
    return "met", f"steady at {result.overall.request_rate:.4g} requests/s of {rate:.4g}"


async def find_capacity(
    probe: Callable[[float], Awaitable[Result]],
    start: float,
    ceiling: float,
    report: Callable[[Probe], None],
) -> Capacity:
    """Search between `start` and `ceiling`. `probe` runs one rate.

    A miss that is not certain (its confidence interval includes the bound) is tried once more; the second
    try decides.
    """
    probes: list[Probe] = []

    async def attempt(rate: float) -> Verdict:
        verdict: Verdict = "missed"
        for _ in range(_REPEATS):
            result = await probe(rate)
            verdict, why = judge(result, rate)
            probes.append(Probe(rate=rate, verdict=verdict, why=why, result=result))
            report(probes[-1])
            if verdict != "missed" or all(c.certain for c in result.checks if not c.met):
                break
        return verdict

    low: float | None = None
    high: float | None = None
    rate = start
    while len(probes) < MAX_PROBES:
        verdict = await attempt(rate)
        if verdict == "invalid":
            return Capacity(low=low, high=high, probes=probes, note="the generator itself is at its limit")
        if probes[-1].result.stopped_by not in {"complete"}:
            note = f"the search was ended: {probes[-1].result.stopped_by}"
            return Capacity(low=low, high=high, probes=probes, note=note)
        if verdict == "met":
            low = rate
        else:
            high = rate
        if low is not None and low >= ceiling:
            return Capacity(
                low=low, high=None, probes=probes, note=f"the ceiling of {ceiling:g}/s was reached"
            )
        if high is not None and low is None:
            if high < start / 64:
                return Capacity(low=None, high=high, probes=probes, note="not even a small load meets them")
            rate = high / 2
        elif high is None:
            rate = min(rate * 2, ceiling)
        elif low is not None and high <= low * (1 + PRECISION):
            return Capacity(low=low, high=high, probes=probes)
        else:
            rate = ((low or 0) + high) / 2
    return Capacity(low=low, high=high, probes=probes, note=f"ended after {MAX_PROBES} runs")
