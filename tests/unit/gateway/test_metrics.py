"""Histograms of the token path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.metrics import SHORT, Histogram

values = st.lists(st.one_of(st.sampled_from(SHORT), st.floats(0, 20)), max_size=60)


@given(values, values)
def test_many_values_at_once_count_as_they_do_one_by_one(
    before: list[float], given_values: list[float]
) -> None:
    one_by_one, at_once = Histogram(SHORT), Histogram(SHORT)
    for value in (*before, *given_values):
        one_by_one.observe(value)
    for value in before:
        at_once.observe(value)
    at_once.observe_all(list(given_values))
    assert at_once.buckets() == one_by_one.buckets()
    assert at_once.total == pytest.approx(one_by_one.total)
