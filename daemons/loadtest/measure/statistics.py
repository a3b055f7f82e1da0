"""Percentiles with confidence, warm-up detection and trends. Pure functions on sequences."""

import random
from collections.abc import Sequence
from itertools import accumulate
from math import ceil, isfinite, sqrt
from operator import mul

from daemons.loadtest.measure.histogram import Histogram, bucket_middle

_TREND = 3.0
Interval = tuple[float, float]
RESAMPLES = 400
CONFIDENCE = 0.95
TAIL = 10
"""Values beyond a percentile that its interval needs: with 4, 84 % of intervals held the truth, not 95 %."""
BLOCKS = 20
"""Blocks of consecutive time are resampled as wholes: latencies close in time depend on each other."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the ascending values that at least `percent` % of them do not exceed (nearest rank).

    It is always a latency that somebody met. 0 for no values.
    """
    if not ordered:
        return 0.0
    return ordered[max(1, ceil(len(ordered) * percent / 100)) - 1]


class Blocks:
    """Histograms of the consecutive blocks of a run, for the block bootstrap (Künsch 1989)."""

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        self._blocks = len(histograms)
        entries = sorted(
            (bucket, number, n) for number, h in enumerate(histograms) for bucket, n in h.counts.items()
        )
        self._values = [bucket_middle(bucket) for bucket, _, _ in entries]
        self._numbers = [number for _, number, _ in entries]
        self._counts = [n for _, _, n in entries]

    def usable(self, percent: float) -> bool:
        """Whether there is enough to resample: with no values beyond it, a percentile is a maximum."""
        total = sum(self._counts)
        return self._blocks >= 5 and total >= 5 * TAIL and total * min(percent, 100 - percent) / 100 >= TAIL

    def resampled(self, percents: Sequence[float], rng: random.Random) -> list[float]:
        """The percentiles of one resample."""
        weights = [0] * self._blocks
        for number in rng.choices(range(self._blocks), k=self._blocks):
            weights[number] += 1
        seen = list(accumulate(map(mul, self._counts, map(weights.__getitem__, self._numbers))))
        total = seen[-1] if seen else 0
        found = []
        for percent in percents:
            rank = max(1, ceil(total * percent / 100))
            found.append(self._values[_first_at_least(seen, rank)] if total else 0.0)
        return found

    def intervals(self, percents: Sequence[float], seed: int = 0) -> dict[float, Interval]:
        """Confidence intervals of those percentiles for which there is enough, by resampling."""
        percents = [p for p in percents if self.usable(p)]
        rng = random.Random(seed)  # noqa: S311 - resampling
        samples = [self.resampled(percents, rng) for _ in range(RESAMPLES if percents else 0)]
        return {p: interval([s[i] for s in samples]) for i, p in enumerate(percents)}


def _first_at_least(seen: Sequence[int], rank: int) -> int:
    low, high = 0, len(seen) - 1
    while low < high:
        middle = (low + high) // 2
        if seen[middle] >= rank:
            high = middle
        else:
            low = middle + 1
    return low


def interval(samples: Sequence[float]) -> Interval:
    """The central `CONFIDENCE` share of bootstrap samples."""
    ordered = sorted(samples)
    tail = (1 - CONFIDENCE) / 2 * 100
    return percentile(ordered, tail), percentile(ordered, 100 - tail)


def ratio_interval(base: Blocks, now: Blocks, percent: float, seed: int = 0) -> Interval | None:
    """Confidence interval of percentile(now) / percentile(base); None when there is too little."""
    if not (base.usable(percent) and now.usable(percent)):
        return None
    rng = random.Random(seed)  # noqa: S311 - resampling
    ratios = []
    for _ in range(RESAMPLES):
        before = base.resampled([percent], rng)[0]
        after = now.resampled([percent], rng)[0]
        ratios.append(after / before if before else 1.0)
    return interval(ratios)


def warmup_end(series: Sequence[float]) -> int | None:
    """How many leading values to leave out: MSER (White 1997), the cut with the least standard error.

    None when the best cut lies in the second half and the series rises: then no steady state was reached.
    """
    count = len(series)
    if count < 10:
        return 0
    best, best_error = 0, float("inf")
    total = squares = 0.0
    errors: list[float] = []
    for left in range(count - 1, -1, -1):
        total += series[left]
        squares += series[left] ** 2
        kept = count - left
        variance = max(0.0, squares / kept - (total / kept) ** 2)
        errors.append(variance / kept if kept >= 5 else float("inf"))
    errors.reverse()
    for left, error in enumerate(errors):
        if error < best_error * (1 - 1e-9):
            best, best_error = left, error
    if best <= count // 2:
        return best
    return None if abs(trend(series)) > _TREND else 0


def trend(series: Sequence[float]) -> float:
    """Mann-Kendall's Z of `series`: above 3, it rises beyond chance."""
    values = [v for v in series if isfinite(v)]
    count = len(values)
    if count < 8:
        return 0.0
    score = sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :])
    spread = sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return (score - (score > 0) + (score < 0)) / spread


def mean_interval(blocks: Sequence[float], seed: int = 0) -> Interval | None:
    """Bootstrap interval of the mean of `blocks`; None for fewer than 5."""
    if len(blocks) < 5:
        return None
    rng = random.Random(seed)  # noqa: S311 - resampling
    return interval([sum(rng.choices(blocks, k=len(blocks))) / len(blocks) for _ in range(RESAMPLES)])
