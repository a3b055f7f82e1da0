"""The result of a run as data: what is saved as JSON, compared, and shown. Times are in seconds."""

from collections.abc import Sequence
from math import inf
from typing import Any, Literal

import msgspec

SCHEMA = 1
"""Version of the saved form; `compare` refuses another."""
NEGLIGIBLE = 0.001
"""Seconds between P50 and P99, summed over stages, below which there is no tail to explain."""
PERCENTS = (50.0, 90.0, 95.0, 99.0)


class Latency(msgspec.Struct, kw_only=True):
    """Distribution of one latency."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    intervals: dict[str, tuple[float, float]] = {}
    """95 % confidence intervals by percentile (``p99``), where there is enough data."""
    histogram: list[tuple[float, float, int]] = []
    """(from, to, count) of every bucket that is not empty."""

    def at(self, percent: float) -> float:
        """The percentile, from the fields where it is one of them, else from the histogram."""
        known = {50.0: self.p50, 90.0: self.p90, 95.0: self.p95, 99.0: self.p99, 100.0: self.max}
        if percent in known:
            return known[percent]
        rank = max(1, -int(-self.count * percent // 100))
        seen = 0
        for low, high, count in self.histogram:
            seen += count
            if seen >= rank:
                return (low + high) / 2
        return self.max


class Group(msgspec.Struct, kw_only=True):
    """Figures of a group of requests."""

    kind: Literal["all", "type", "key", "step"]
    name: str
    requests: int
    ok: int
    outcomes: dict[str, int]
    answered: int = 0
    """Requests to which an answer at least began, be it a refusal."""
    request_rate: float
    """Successful requests a second that ended within the window."""
    offered_rate: float = 0
    """Requests a second that were due within the window."""
    output_token_rate: float
    prompt_token_rate: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    without_usage: int
    """Successful requests whose tokens the server did not state; they are in no token figure."""
    good: int
    goodput: float
    """Good requests a second that ended within the window."""
    latencies: dict[str, Latency]

    @property
    def failed(self) -> int:
        """Requests that failed, whatever the way."""
        return sum(n for name, n in self.outcomes.items() if name not in {"ok", "cancelled", "abandoned"})

    @property
    def unanswered(self) -> bool:
        """Whether no request got any answer at all, not even a refusal."""
        return bool(self.failed) and not self.answered

    @property
    def error_share(self) -> float:
        """Share of failures among requests that ended on their own."""
        ended = self.failed + self.ok
        return self.failed / ended if ended else 0.0


class Check(msgspec.Struct, kw_only=True):
    """An objective and what was measured."""

    objective: str
    measured: float | None
    met: bool
    certain: bool
    """Whether the confidence interval lies on one side of the bound."""
    interval: tuple[float, float] | None = None


class Slice(msgspec.Struct, kw_only=True):
    """One interval of the run's course."""

    at: float
    sent: int = 0
    ok: int = 0
    failed: int = 0
    output_tokens: float = 0
    ttft: tuple[float, float, float] | None = None
    """P50, P95, P99 of requests that were due in it."""
    e2e: tuple[float, float, float] | None = None
    in_flight: int = 0
    backlog: int = 0
    lag: float = 0


class Cause(msgspec.Struct, kw_only=True):
    """One stage of a request's way and its part in the tail."""

    stage: str
    p50: float
    p99: float
    """As `p50` estimated within its bucket, unless it was measured."""
    share: float
    """Of the distance between P50 and P99, summed over the stages."""
    count: int
    mean: float | None = None
    """Exact, of a histogram too."""
    between: tuple[tuple[float, float | None], ...] = ()
    """Bounds of the buckets of P50 and P99, all that a histogram tells; empty where they were measured."""

    @property
    def hidden(self) -> float:
        """Seconds that may lie between P50 and P99 unseen, because both are in one bucket."""
        if not self.between or self.between[0] != self.between[1]:
            return 0.0
        low, high = self.between[0]
        # No more than a hundredth of all values is above a hundred times their mean.
        most = [
            bound for bound in (high, 100 * self.mean if self.mean is not None else None) if bound is not None
        ]
        return max(min(most) - low, 0.0) if most else inf


class Attribution(msgspec.Struct, kw_only=True):
    """Where the tail comes from, from metrics scraped over the window."""

    sources: list[str]
    problems: list[str]
    causes: list[Cause]
    notes: list[str]
    series: dict[str, list[tuple[float, float]]] = {}
    """Gauges over time: (seconds since start, value)."""

    @property
    def verdict(self) -> str:
        """One sentence: the largest part of the way to the first token, and of the whole."""
        before = [cause for cause in self.causes if cause.stage != "decode"]
        first, whole = _largest(before), _largest(self.causes)
        if whole is None:
            return "no stage makes one"
        return f"to the first token {first}; end to end {whole}" if first else f"end to end {whole}"


def _largest(causes: Sequence[Cause]) -> str | None:
    if not causes:
        return None
    total = sum(cause.p99 - cause.p50 for cause in causes)
    top = max(causes, key=lambda cause: cause.p99 - cause.p50)
    known = top.p99 - top.p50
    hidden = [cause.stage for cause in causes if cause.hidden > max(known, NEGLIGIBLE)]
    if hidden:
        return f"unknown (the buckets of {' and '.join(hidden)} are too wide to tell)"
    return f"{known / total:.0%} {top.stage}" if total > NEGLIGIBLE else None


class GeneratorHealth(msgspec.Struct, kw_only=True):
    """How well the generator itself did."""

    dispatch_p50: float
    dispatch_p99: float
    dispatch_max: float
    loop_p99: float
    cpu_share: float
    """Of one core, over the window."""
    redialled: int


class Result(msgspec.Struct, kw_only=True):
    """A run."""

    schema: int = SCHEMA
    started: str
    target: str
    model: str
    plan: dict[str, Any]
    stopped_by: str
    seconds: float
    sent_requests: int = 0
    """Of the whole run, warm-up included."""
    used_tokens: int = 0
    """Prompt and output tokens of the whole run as a budget counts them: estimated where none were stated."""
    window: tuple[float, float]
    """What the figures are of, in seconds from the start."""
    warmup: str
    steady: bool
    steady_note: str
    valid: bool
    invalid: list[str]
    warnings: list[str]
    generator: GeneratorHealth
    groups: list[Group]
    checks: list[Check]
    reasons: dict[str, str] = {}
    """By outcome, what the target or the system said the first time."""
    series: list[Slice]
    blocks: dict[str, list[list[tuple[int, int]]]]
    """Histogram of each block of the window, by metric, for comparisons."""
    rate_blocks: list[float]
    """Output tokens a second in each block."""
    attribution: Attribution | None = None

    @property
    def overall(self) -> Group:
        """The group of all requests."""
        return self.groups[0]

    @property
    def objectives_met(self) -> bool:
        """Whether every objective was met."""
        return all(check.met for check in self.checks)
