"""Finds the highest request rate that meets the objectives: doubling, then bisection, a run for each rate."""

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from daemons.loadtest.measure.results import Result

PRECISION = 0.1
"""The search ends when the failing rate is at most this share above the passing one."""
MAX_PROBES = 16
_REPEATS = 2
_SMALLEST = 64
"""The search gives up below the starting rate divided by this."""

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
    note: str


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

    A miss that is not certain (its confidence interval includes the bound) and a run that the generator
    spoiled are tried once more; the second try decides.
    """
    search = _Search(start, ceiling)
    while search.end is None:
        rate = search.rate
        for _ in range(_REPEATS):
            result = await probe(rate)
            verdict, why = judge(result, rate)
            search.probes.append(Probe(rate=rate, verdict=verdict, why=why, result=result))
            report(search.probes[-1])
            if result.stopped_by != "complete" or verdict == "met":
                break
            if verdict == "missed" and all(c.certain for c in result.checks if not c.met):
                break
        search.learn()
    return Capacity(low=search.low, high=search.high, probes=search.probes, note=search.end)


class _Search:
    """Where the search stands: `low` is known to pass, `high` to fail; `end` says why it is over."""

    def __init__(self, start: float, ceiling: float) -> None:
        self.rate = min(start, ceiling)
        self.low: float | None = None
        self.high: float | None = None
        self.end: str | None = None
        self.probes: list[Probe] = []
        self._floor = self.rate / _SMALLEST
        self._ceiling = ceiling

    def learn(self) -> None:
        """Take the last probe into account and choose the next rate."""
        last = self.probes[-1]
        if last.result.stopped_by != "complete":
            self.end = f"the search was ended: {last.result.stopped_by}"
        elif last.verdict == "invalid":
            self.end = "the generator itself is at its limit"
        elif last.verdict == "met":
            self.low = self.rate
        else:
            self.high = self.rate
        if self.end is None:
            self.end = self._reason_to_end()
        self.rate = self._next()

    def _reason_to_end(self) -> str | None:
        if self.low is not None and self.low >= self._ceiling:
            return f"the ceiling of {self._ceiling:g}/s was reached"
        if self.low is None and self.high is not None and self.high < self._floor:
            return "not even a small load meets them"
        if self.low is not None and self.high is not None and self.high <= self.low * (1 + PRECISION):
            return ""
        return f"ended after {MAX_PROBES} runs" if len(self.probes) >= MAX_PROBES else None

    def _next(self) -> float:
        if self.high is None:
            return min(self.rate * 2, self._ceiling)
        return ((self.low or 0.0) + self.high) / 2
