"""What the bodies of large requests may take together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.api.bodies import Bodies
from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.metrics import Counter


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 60), st.booleans())))
def test_no_key_and_not_all_of_them_have_more_than_they_may(steps: list[tuple[str, int, bool]]) -> None:
    refused = Counter()
    bodies, held = Bodies(200, 40, refused), list[tuple[str, int]]()
    for alias, size, ends in steps:
        if ends and held:
            bodies.give_back(*held.pop(0))
            continue
        of, together = sum(s for a, s in held if a == alias), sum(s for _, s in held)
        free = 200 - together - size
        fits = ErrorCode.RATE_LIMIT_EXCEEDED if of + size > max(free // 3, 40) else None
        if fits is None and free < 0:
            fits = ErrorCode.QUEUE_FULL
        if fits is None:
            bodies.take(alias, size)
            held.append((alias, size))
            continue
        before = refused.get((alias, "key_body_bytes"), 0)
        with pytest.raises(ApiError) as error:
            bodies.take(alias, size)
        assert error.value.code is fits
        assert error.value.headers == {"Retry-After": "1"}
        assert refused.get((alias, "key_body_bytes"), 0) - before == (fits is ErrorCode.RATE_LIMIT_EXCEEDED)
    for alias, size in held:
        bodies.give_back(alias, size)
    bodies.take("a", 50)


@pytest.mark.parametrize("greedy", [1, 4, 8])
def test_keys_that_take_all_they_may_leave_room_for_another_one(greedy: int) -> None:
    bodies, size = Bodies(100_000, 40, Counter()), 10
    free = 100_000
    for alias in map(str, range(greedy)):
        for _ in range(free // 4 // size):
            bodies.take(alias, size)
        free -= free // 4 // size * size
        with pytest.raises(ApiError):
            bodies.take(alias, size)
    for _ in range(free // 4 // size):
        bodies.take("another", size)


def test_a_key_may_always_have_the_largest_body() -> None:
    Bodies(100, 90, Counter()).take("a", 90)
