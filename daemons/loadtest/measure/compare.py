"""Compares a result with a saved one: what got better or worse, and whether that is more than chance."""

from pathlib import Path
from typing import Literal

import msgspec

from daemons.loadtest.measure.histogram import Histogram
from daemons.loadtest.measure.results import SCHEMA, Result
from daemons.loadtest.measure.statistics import Blocks, mean_interval, ratio_interval
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

WORTH = 0.03
"""Relative change below which a difference is not worth a word, however certain."""


class Difference(msgspec.Struct, kw_only=True):
    """One figure, before and now."""

    figure: str
    before: float
    now: float
    interval: tuple[float, float] | None
    """95 % confidence interval of now / before."""
    verdict: Literal["better", "worse", "same", "unclear"]
    unit: Literal["s", "tok/s"]


class Comparison(msgspec.Struct, kw_only=True):
    """All differences, and what makes the two runs hard to compare."""

    baseline: str
    differences: list[Difference]
    caveats: list[str]

    @property
    def regressed(self) -> bool:
        """Whether any figure got worse beyond chance."""
        return any(d.verdict == "worse" for d in self.differences)


def load_result(path: Path) -> Result:
    """A result saved as JSON.

    Raises:
        Fatal: it cannot be read, is no result, or is one of another version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Fatal(describe_os_error(error, "read the baseline"), EXIT_CONFIG) from None
    try:
        result = msgspec.json.decode(data, type=Result)
    except msgspec.MsgspecError as error:
        raise Fatal(f"{path}: not a saved result of this load tester: {error}", EXIT_CONFIG) from None
    if result.schema != SCHEMA:
        raise Fatal(f"{path}: saved by another version (form {result.schema}, not {SCHEMA})", EXIT_CONFIG)
    return result


def compare(before: Result, now: Result) -> Comparison:
    """Differences of the headline figures, each with the confidence interval of its ratio."""
    found = [
        _latency(metric, percent, before, now)
        for metric in ("ttft", "itl", "tpot", "e2e")
        for percent in (50.0, 95.0, 99.0)
    ]
    found.append(_throughput(before, now))
    return Comparison(
        baseline=before.started,
        differences=[d for d in found if d is not None],
        caveats=_caveats(before, now),
    )


def _latency(metric: str, percent: float, before: Result, now: Result) -> Difference | None:
    old, new = before.overall.latencies.get(metric), now.overall.latencies.get(metric)
    if old is None or new is None:
        return None
    ratio = ratio_interval(_blocks(before, metric), _blocks(now, metric), percent)
    return Difference(
        figure=f"{metric} p{percent:g}",
        before=old.at(percent),
        now=new.at(percent),
        interval=ratio,
        verdict=_verdict(ratio, higher_is_better=False),
        unit="s",
    )


def _blocks(result: Result, metric: str) -> Blocks:
    return Blocks([Histogram(counts) for counts in result.blocks.get(metric, [])])


def _throughput(before: Result, now: Result) -> Difference | None:
    old, new = mean_interval(before.rate_blocks), mean_interval(now.rate_blocks)
    if old is None or new is None or old[0] <= 0 or not before.overall.output_token_rate:
        return None
    # The ratio of two intervals is wider than that of a joint resample: it errs on the side of "unclear".
    ratio = (new[0] / old[1], new[1] / old[0])
    return Difference(
        figure="output tokens",
        before=before.overall.output_token_rate,
        now=now.overall.output_token_rate,
        interval=ratio,
        verdict=_verdict(ratio, higher_is_better=True),
        unit="tok/s",
    )


def _verdict(
    ratio: tuple[float, float] | None, *, higher_is_better: bool
) -> Literal["better", "worse", "same", "unclear"]:
    if ratio is None:
        return "unclear"
    low, high = ratio
    if low > 1 + WORTH:
        return "better" if higher_is_better else "worse"
    if high < 1 - WORTH:
        return "worse" if higher_is_better else "better"
    return "same" if low > 1 - 2 * WORTH and high < 1 + 2 * WORTH else "unclear"


def _caveats(before: Result, now: Result) -> list[str]:
    found: list[str] = []
    for name, result in (("the baseline", before), ("this run", now)):
        found.extend(f"{name} is invalid: {reason}" for reason in result.invalid)
        if not result.steady:
            found.append(f"{name} was not steady")
    if before.model != now.model:
        found.append(f"other model: {before.model}, now {now.model}")
    changed = (part for part in ("load", "mix") if before.plan.get(part) != now.plan.get(part))
    return found + [f"the plans differ in their {part}" for part in changed]
