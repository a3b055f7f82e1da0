"""Histograms of the token path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.metrics import SHORT, Histogram

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
