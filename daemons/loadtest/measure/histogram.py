"""A log-linear histogram of durations, as HdrHistogram's, with a relative error of at most 0.4 %."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Self

_SUB = 8
_MASK = (1 << _SUB) - 1
_BATCH = 1 << 16
MICROSECOND = 1e-6


def bucket_of(seconds: float) -> int:
    """Index of the bucket of `seconds`: 1 us wide below 256 us, above at most 1/128 of the value."""
    return _bucket(int(seconds * 1e6 + 0.5))


def _bucket(us: int) -> int:
    us = max(us, 0)
    if us <= _MASK:
        return us
    shift = us.bit_length() - _SUB
    return (shift << _SUB) + (us >> shift)


def bucket_bounds(index: int) -> tuple[float, float]:
    """Seconds from (inclusive) and to (exclusive) that bucket `index` covers."""
    shift, mantissa = index >> _SUB, index & _MASK
    return (mantissa << shift) * MICROSECOND, ((mantissa + 1) << shift) * MICROSECOND


def bucket_middle(index: int) -> float:
    """The value a bucket stands for, in seconds."""
    shift, mantissa = index >> _SUB, index & _MASK
    return ((mantissa << shift) + ((1 << shift) - 1) / 2) * MICROSECOND


class Histogram:
    """Counts by bucket; memory depends on the spread of the values, not on their number."""

    def __init__(self, counts: Iterable[tuple[int, int]] = ()) -> None:
        self.counts: dict[int, int] = dict(counts)
        self.total = sum(self.counts.values())
        self.sum = sum(bucket_middle(index) * count for index, count in self.counts.items())
        self.max = max((bucket_middle(index) for index in self.counts), default=0.0)

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """A histogram of `values` in seconds."""
        made = cls()
        made.extend(values)
        return made

    def extend(self, values: Iterable[float]) -> None:
        """Count values in seconds."""
        values = iter(values)
        while batch := list(islice(values, _BATCH)):
            for us, count in Counter([int(value * 1e6 + 0.5) for value in batch]).items():
                index = _bucket(us)
                self.counts[index] = self.counts.get(index, 0) + count
            self.total += len(batch)
            self.sum += sum(batch)
            self.max = max(self.max, *batch)

    def add(self, other: "Histogram") -> None:
        """Count what `other` counted."""
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count
        self.total += other.total
        self.sum += other.sum
        self.max = max(self.max, other.max)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(sorted(self.counts.items()))

    @property
    def mean(self) -> float:
        """Seconds; 0 when empty."""
        return self.sum / self.total if self.total else 0.0

    def percentile(self, percent: float) -> float:
        """The value that `percent` % of the values do not exceed, in seconds; 0 when empty."""
        if not self.total:
            return 0.0
        if percent >= 100:
            return self.max
        rank = max(1, -int(-self.total * percent // 100))
        seen = 0
        for index, count in self:
            seen += count
            if seen >= rank:
                return min(bucket_middle(index), self.max)
        return self.max
