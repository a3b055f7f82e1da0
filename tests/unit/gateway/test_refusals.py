"""What a request over a limit is told."""

import pytest

from daemons.gateway.errors import ApiError
from daemons.gateway.metrics import Counter
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.limiter import Limiter, Reservation
from daemons.gateway.tenants.reserve import Limits
from daemons.gateway.tenants.ring import Tenant

NOON = 1_800_014_400.0


class NobodyAsked:
    """A store: what is refused here never comes to it."""

    async def reserve(self, reservation: Reservation, bounds: Bounds) -> None:
        raise AssertionError

    def settled(self, reservation: Reservation, used: int) -> None:
        pass

    def cancelled(self, reservation: Reservation) -> None:
        pass


def limits() -> Limits:
    return Limits(Limiter(Bounds(), lambda: 1000.0, lambda: NOON), Counter())


def told(made: Limits, bounds: Bounds, prompt: int, most: int | None) -> str:
    """What a request is told that is refused."""
    with pytest.raises(ApiError) as error:
        made.reserve(Tenant("a", limits=bounds, cache_group="a"), "", prompt, most)
    return error.value.message


@pytest.mark.parametrize(
    ("name", "rule", "again"),
    [
        ("tokens_per_minute", "200 tokens a minute", "try again in 61 s"),
        ("tokens_per_day", "200 tokens a day", "the budget is renewed in 12 h 0 min"),
        ("tokens_per_month", "200 tokens a month", "the budget is renewed in 16 days"),
    ],
)
def test_a_refusal_for_tokens_says_what_is_left_and_what_would_fit(name: str, rule: str, again: str) -> None:
    made, bounds = limits(), Bounds(**{name: 200})
    tenant = Tenant("a", limits=bounds, cache_group="a")
    made.reserve(tenant, "", 100, 19)
    assert told(made, bounds, 14, 300) == (
        f"This API key may use {rule} and has 81 left, but this request reserves 270 (14 for its prompt, "
        f"by estimate, and 256 for its answer); {again}. "
        "With an answer of at most 67 tokens (max_tokens) it would fit now."
    )
    assert "at most 68 tokens" not in told(made, bounds, 14, 68)
    assert made.reserve(tenant, "", 14, 67).tokens == 81
    # Nor does an answer of one token fit any more.
    assert told(made, bounds, 1, 5).endswith(f"{again}.")


def test_no_answer_is_short_enough_for_a_prompt_that_does_not_fit() -> None:
    made, bounds = limits(), Bounds(tokens_per_day=200)
    made.reserve(Tenant("a", limits=bounds, cache_group="a"), "", 100, 19)
    assert "has 81 left" in told(made, bounds, 81, 1)
    assert "max_tokens" not in told(made, bounds, 81, 1)
    assert "at most 1 token (" in told(made, bounds, 80, None)


def test_what_is_left_is_not_said_where_others_count_too() -> None:
    made, bounds = limits(), Bounds(tokens_per_day=200)
    made.store = NobodyAsked()
    made.reserve(Tenant("a", limits=bounds, cache_group="a"), "", 100, 19)
    assert told(made, bounds, 14, 300) == (
        "This API key may use 200 tokens a day, and this request would be more; "
        "the budget is renewed in 12 h 0 min."
    )


def test_one_is_not_many() -> None:
    made = limits()
    made.reserve(Tenant("a", limits=Bounds(), cache_group="a"), "", 1, 1)
    assert "may send 1 request a minute," in told(made, Bounds(requests_per_minute=1), 1, 1)
    assert "may have 1 request in flight," in told(made, Bounds(concurrency=1), 1, 1)
    assert "may use 1 token a day " in told(made, Bounds(tokens_per_day=1), 1, 1)
