"""Histograms of the token path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.history import Record
from daemons.gateway.metrics import SHORT, Histogram, Metrics

values = st.lists(st.one_of(st.sampled_from(SHORT), st.floats(0, 20)), max_size=60)


@given(st.lists(values, max_size=4))
def test_values_are_counted_whenever_they_are_sorted_in(batches: list[list[float]]) -> None:
    histogram = Histogram(SHORT)
    for batch in batches:
        for value in batch:
            histogram.note(value)
        histogram.count()
    every = [value for batch in batches for value in batch]
    within = [sum(value <= bound for value in every) for bound in SHORT]
    assert [count for _, count in histogram.buckets()] == [*within, len(every)]
    assert histogram.total == pytest.approx(sum(every))


def ended(key: str, outcome: str = "ok", ttft_ms: float | None = 30.0) -> Record:
    engine_ms = None if ttft_ms is None else ttft_ms - 12
    return Record(
        request_id="r",
        key=key,
        model="m",
        endpoint="chat",
        priority="default",
        stream=True,
        outcome=outcome,
        status=200,
        client="",
        engine="e",
        prompt_tokens=10,
        cached_tokens=0,
        completion_tokens=5,
        queue_ms=10.0,
        engine_ms=engine_ms,
        ttft_ms=ttft_ms,
        duration_ms=400.0,
        bytes_in=100,
        bytes_out=1000,
        retries=0,
    )


def test_requests_that_have_ended_are_counted_once_and_whole() -> None:
    metrics = Metrics()
    series = metrics.series("m", "chat", "default")
    for record in (ended("a"), ended("a"), ended("b", "engine_lost"), ended("b", "engine_timeout", None)):
        series.ended(record)
    metrics.gather()
    metrics.gather()
    outcomes = {labels[3]: count for labels, count in metrics.requests.items() if count}
    assert outcomes == {"ok": 2, "engine_lost": 1, "engine_timeout": 1}
    assert metrics.tokens == {
        (key, "m", kind): count for key in "ab" for kind, count in (("prompt", 20), ("completion", 10))
    }
    assert (metrics.request_bytes, metrics.response_bytes) == ({("m",): 400}, {("m",): 4000})
    assert series.duration.total == pytest.approx(1.6)
    assert [histogram.total for histogram in (series.ttft, series.queue, series.overhead)] == pytest.approx(
        [0.09, 0.03, 0.006]
    )
