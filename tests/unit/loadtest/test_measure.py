"""Histograms, percentiles, confidence, warm-up, objectives."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.loadtest.measure.histogram import Histogram, bucket_bounds, bucket_of
from daemons.loadtest.measure.objectives import parse_objective, request_bounds
from daemons.loadtest.measure.statistics import (
    Blocks,
    mean_interval,
    percentile,
    ratio_interval,
    trend,
    warmup_end,
)

SECONDS = st.floats(0, 4000, allow_nan=False)


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - reproducible, not secret


@given(SECONDS)
def test_a_value_lies_in_its_bucket(value: float) -> None:
    low, high = bucket_bounds(bucket_of(value))
    assert low - 0.6e-6 <= value <= high + 0.6e-6
    assert high - low <= max(1.01e-6, value / 127)


@given(SECONDS, SECONDS)
def test_buckets_keep_the_order(a: float, b: float) -> None:
    assert a > b or bucket_of(a) <= bucket_of(b)


@given(
    st.lists(st.floats(0.0005, 4000), min_size=1, max_size=300),
    st.sampled_from([1, 50, 90, 95, 99, 99.9, 100]),
)
def test_percentiles_of_a_histogram_are_within_one_percent_of_exact(values: list[float], p: float) -> None:
    exact = percentile(sorted(values), p)
    assert Histogram.of(values).percentile(p) == pytest.approx(exact, rel=0.01)


def test_percentiles_of_a_large_sample_are_within_one_percent_of_exact() -> None:
    rng = seeded(1)
    values = [rng.lognormvariate(-2, 1) for _ in range(100_000)]
    histogram, ordered = Histogram.of(values), sorted(values)
    for p in (1, 50, 90, 95, 99, 99.9, 100):
        assert histogram.percentile(p) == pytest.approx(percentile(ordered, p), rel=0.01)
    assert histogram.mean == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_nearest_rank() -> None:
    values = [0.5 + 0.4 * n for n in range(8)]
    assert percentile(values, 99) == values[-1]
    assert percentile(values, 50) == values[3]
    assert percentile([], 50) == 0


def test_confidence_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(40):
        rng = seeded(seed)
        blocks = [Histogram.of(rng.expovariate(1.0) for _ in range(60)) for _ in range(20)]
        low, high = Blocks(blocks).intervals([90])[90]
        covered += low <= math.log(10) <= high
    assert covered >= 34


def test_too_little_data_has_no_interval() -> None:
    assert Blocks([Histogram.of([1.0])] * 20).intervals([50]) == {}
    assert mean_interval([1.0, 2.0]) is None
    enough_for = Blocks([Histogram.of([n / 10 for n in range(1, 11)])] * 20).intervals([50, 90, 95, 99])
    assert set(enough_for) == {50, 90, 95}, "a P99 of 200 values is their maximum, and no interval holds it"


def test_histograms_add_up() -> None:
    whole, part = Histogram.of([0.1, 0.2, 5.0]), Histogram.of([5.0])
    part.add(Histogram.of([0.1, 0.2]))
    assert (list(part), part.total, part.max) == (list(whole), 3, 5.0)
    assert part.mean == pytest.approx(whole.mean)


def test_a_ratio_shows_a_change_and_only_a_change() -> None:
    rng = seeded(3)

    def run(mean: float) -> Blocks:
        return Blocks(
            [Histogram.of(max(0.0, rng.gauss(mean, mean / 10)) for _ in range(100)) for _ in range(20)]
        )

    slower = ratio_interval(run(0.1), run(0.12), 95)
    same = ratio_interval(run(0.1), run(0.1), 95)
    assert slower is not None
    assert slower[0] > 1.1
    assert same is not None
    assert same[0] < 1 < same[1]


def test_warmup_is_found_and_a_steady_series_has_none() -> None:
    rng = seeded(5)
    steady = [1 + rng.gauss(0, 0.05) for _ in range(100)]
    cold = [5 - 0.2 * n for n in range(20)]
    cut = warmup_end(cold + steady)
    assert cut is not None
    assert 15 <= cut <= 25
    assert warmup_end([float(n) for n in range(100)]) is None
    assert warmup_end([1.0, 2.0]) == 0


def test_trend() -> None:
    assert trend([float(n) for n in range(20)]) > 3
    assert abs(trend([1.0, 2.0] * 10)) < 2
    assert trend([1.0]) == 0


@pytest.mark.parametrize(
    ("text", "metric", "percent", "bound", "kind"),
    [
        ("ttft p95 < 500ms", "ttft", 95, 0.5, None),
        ("chat-short: e2e p99.9<=8s", "e2e", 99.9, 8, "chat-short"),
        ("itl max < 1min", "itl", 100, 60, None),
        ("tpot < 50ms", "tpot", 99, 0.05, None),
        ("errors < 1%", "errors", None, 0.01, None),
        ("goodput > 0.95", "goodput", None, 0.95, None),
    ],
)
def test_objectives(text: str, metric: str, percent: float | None, bound: float, kind: str | None) -> None:
    found = parse_objective(text)
    assert (found.metric, found.percentile, found.type) == (metric, percent, kind)
    assert found.bound == pytest.approx(bound)
    again = parse_objective(str(found))
    assert again.bound == pytest.approx(bound)
    assert (again.metric, again.sign) == (metric, found.sign)
    assert found.met_by(found.bound) == found.sign.endswith("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "ttft p95 > 500ms",
        "ttft p95 < 500",
        "ttft p0 < 1s",
        "errors < 5ms",
        "goodput < 1%",
        "errors < 0%",
        "goodput > 100%",
        "x p9 < 1s",
    ],
)
def test_objectives_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="objective"):
        parse_objective(text)


def test_bounds_of_a_request_are_the_tightest() -> None:
    objectives = [parse_objective(t) for t in ("ttft p95 < 1s", "a: ttft p50 < 500ms", "errors < 1%")]
    assert request_bounds(objectives, "a") == {"ttft": 0.5}
    assert request_bounds(objectives, "b") == {"ttft": 1.0}
