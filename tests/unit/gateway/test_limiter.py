"""The limiter on a simulated clock, against the rules it has to keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemons.gateway.tenants.accounts import Refused, periods_of
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.limiter import Limiter, Reservation

MINUTE = 60.0
DAY = 86400.0
NOON = 1_800_014_400.0


class Clock:
    """Both clocks; the wall may jump."""

    def __init__(self) -> None:
        self.mono = 1000.0
        self.wall = NOON

    def forward(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += seconds


def limiter(clock: Clock, addresses: Bounds | None = None) -> Limiter:
    return Limiter(addresses or Bounds(), lambda: clock.mono, lambda: clock.wall)


def passes(limits: Limiter, bounds: Bounds, tokens: int = 1, address: str = "") -> Reservation | None:
    try:
        return limits.reserve("a", bounds, address, tokens)
    except Refused:
        return None


class Rules(RuleBasedStateMachine):
    """Requests that begin, end, are cancelled, in any order, while time passes and processes change.

    The model is the plain list of what began when and used how much.
    """

    bounds = Bounds(
        requests_per_minute=7, tokens_per_minute=100, concurrency=4, tokens_per_day=600, tokens_per_month=900
    )

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.limits = limiter(self.clock)
        self.open: list[tuple[Reservation, int, float]] = []
        self.begun: list[float] = []
        self.settled: list[tuple[float, int]] = []
        self.month_used = 0

    @rule(seconds=st.floats(0.0, 90.0))
    def time_passes(self, seconds: float) -> None:
        self.clock.forward(seconds)

    @rule(tokens=st.integers(0, 150))
    def request(self, tokens: int) -> None:
        try:
            made = self.limits.reserve("a", self.bounds, "", tokens)
        except Refused as refused:
            self.check_wait(refused, tokens)
            return
        assert len(self.open) < 4
        assert sum(1 for began in self.begun if began > self.clock.mono - MINUTE) < 7
        self.begun.append(self.clock.mono)
        self.open.append((made, tokens, self.clock.mono))

    def check_wait(self, refused: Refused, tokens: int) -> None:
        """A true Retry-After: not before it, but after it, if nothing else happens."""
        if refused.dimension not in {"requests", "tokens"}:
            return
        state = self.limits.export()
        later = Clock()
        for wait, fits in ((refused.wait - 0.01, False), (refused.wait + 0.001, True)):
            if wait < 0:
                continue
            later.mono, later.wall = self.clock.mono + wait, self.clock.wall + wait
            copy = limiter(later)
            copy.restore(state, same_boot=True)
            only = Bounds(
                **{f"{refused.dimension}_per_minute": getattr(self.bounds, f"{refused.dimension}_per_minute")}
            )
            assert (passes(copy, only, tokens) is not None) is fits

    @precondition(lambda self: self.open)
    @rule(data=st.data(), used=st.integers(0, 200))
    def end(self, data: st.DataObject, used: int) -> None:
        made, _, began = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        assert made.settle(used, 0)
        assert not made.settle(used, 0)
        assert not made.cancel()
        self.settled.append((began, used))
        self.month_used += used

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        made, _, began = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        assert made.cancel()
        assert not made.settle(5, 5)
        self.begun.remove(began)

    @rule(hours=st.floats(-100.0, 100.0))
    def wall_jumps(self, hours: float) -> None:
        """The wall clock jumps, somebody asks, and it jumps back: nobody's minute or month is touched."""
        before = self.clock.wall
        self.clock.wall += hours * 3600
        if (made := passes(self.limits, Bounds(), 0)) is not None:
            made.cancel()
        self.clock.wall = before

    @rule()
    def hand_over(self) -> None:
        """Another process goes on where this one was."""
        state = self.limits.export()
        self.limits = limiter(self.clock)
        found = self.limits.restore(state, same_boot=True)
        self.open = [(found[made.number], tokens, began) for made, tokens, began in self.open]

    @invariant()
    def nothing_leaks(self) -> None:
        account = self.limits.keys.get("a")
        if account is None:
            assert not self.open
            return
        assert account.in_flight == len(self.open) == len(self.limits.open)
        now = self.clock.mono
        assert account.requests.advance(now) >= sum(1 for began in self.begun if began > now - MINUTE)
        assert account.requests.total <= sum(1 for began in self.begun if began > now - MINUTE - 0.51)
        held = sum(tokens for _, tokens, _ in self.open)
        assert sum(account.months.used.values()) == self.month_used + held
        true = sum(used for began, used in self.settled if began > now - MINUTE)
        true += sum(tokens for _, tokens, began in self.open if began > now - MINUTE)
        assert account.tokens.advance(now) >= true


TestRules = Rules.TestCase


def test_a_burst_lets_exactly_the_limit_pass_and_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    limits, bounds = limiter(clock), Bounds(requests_per_minute=10, concurrency=3)
    passed = 0
    for _ in range(200):
        made = passes(limits, bounds)
        if made is not None:
            passed += 1
            made.settle(1, 1)
    assert passed == 10
    clock.forward(59.9)
    assert passes(limits, bounds) is None
    clock.forward(0.7)
    held = [passes(limits, bounds) for _ in range(13)]
    assert sum(made is not None for made in held) == 3
    for made in held:
        if made is not None:
            made.settle(0, 0)
    # The ten refusals for concurrency took nothing of the minute: seven are left.
    passed = 0
    for _ in range(13):
        made = passes(limits, bounds)
        if made is not None:
            passed += 1
            made.settle(0, 0)
    assert passed == 7


def test_tokens_are_held_to_the_limit_within_one_requests_output() -> None:
    clock = Clock()
    limits, bounds = limiter(clock), Bounds(tokens_per_minute=1000)
    used = 0
    while (made := passes(limits, bounds, 50)) is not None:
        made.settle(20, 60)
        used += 80
    assert 1000 - 50 < used <= 1000 + 80


def test_a_request_larger_than_the_limit_passes_alone_and_is_paid_for() -> None:
    clock = Clock()
    limits, bounds = limiter(clock), Bounds(tokens_per_minute=100)
    made = passes(limits, bounds, 5000)
    assert made is not None
    assert passes(limits, bounds, 1) is None
    made.settle(60, 30)
    assert passes(limits, bounds, 10) is not None
    assert passes(limits, bounds, 1) is None


@pytest.mark.parametrize(
    ("name", "renewed"), [("tokens_per_day", NOON + DAY / 2), ("tokens_per_month", None)]
)
def test_a_budget_is_renewed_with_its_period(name: str, renewed: float | None) -> None:
    clock = Clock()
    clock.wall = NOON // DAY * DAY + DAY / 2
    limits, bounds = limiter(clock), Bounds(**{name: 100})
    made = limits.reserve("a", bounds, "", 40)
    made.settle(100, 0)
    with pytest.raises(Refused) as refused:
        limits.reserve("a", bounds, "", 1)
    at = periods_of(clock.wall)
    ends = at.day_ends if renewed else at.month_ends
    assert refused.value.wait == ends - clock.wall
    clock.forward(refused.value.wait - 1)
    assert passes(limits, bounds) is None
    clock.forward(1.5)
    assert passes(limits, bounds) is not None


@given(st.lists(st.floats(-1e7, 1e7), max_size=12))
def test_wall_clock_jumps_never_open_the_minute(jumps: list[float]) -> None:
    clock = Clock()
    limits, bounds = limiter(clock), Bounds(requests_per_minute=5)
    passed = sum(passes(limits, bounds) is not None for _ in range(5))
    for jump in jumps:
        clock.wall += jump
        passed += passes(limits, bounds) is not None
    assert passed == 5


def test_a_clock_that_jumps_ahead_and_back_does_not_renew_a_budget() -> None:
    clock = Clock()
    limits, bounds = limiter(clock), Bounds(tokens_per_day=100)
    limits.reserve("a", bounds, "", 10).settle(100, 0)
    clock.wall += 3 * DAY
    assert passes(limits, bounds) is not None
    clock.wall -= 3 * DAY
    assert passes(limits, bounds) is None


def test_a_large_request_passes_alone_on_a_day_that_was_given_back_more_than_is_remembered() -> None:
    clock = Clock()
    limits, bounds = limiter(clock), Bounds(tokens_per_day=100)
    made = limits.reserve("a", bounds, "", 40)
    for _ in range(5):
        clock.wall += DAY
        assert passes(limits, Bounds()) is not None
    clock.wall -= 5 * DAY
    made.cancel()
    assert passes(limits, bounds, 500) is not None


@given(st.floats(0.0, 200.0), st.floats(-1e6, 1e6))
def test_after_a_reboot_the_wall_clock_tells_the_age(passed: float, monotonic: float) -> None:
    clock = Clock()
    limits, bounds = limiter(clock), Bounds(requests_per_minute=3)
    for _ in range(3):
        assert passes(limits, bounds) is not None
    state = limits.export()
    later = Clock()
    later.mono, later.wall = 2e6 + monotonic, clock.wall + passed
    again = limiter(later)
    again.restore(state, same_boot=False)
    if passed < MINUTE - 1:
        assert passes(again, bounds) is None
    elif passed > MINUTE + 2:
        again.open.clear()
        assert passes(again, bounds) is not None


def test_addresses_have_limits_over_all_keys() -> None:
    clock = Clock()
    limits = limiter(clock, Bounds(requests_per_minute=4))
    for alias in "abab":
        limits.reserve(alias, Bounds(), "192.0.2.1", 1)
    with pytest.raises(Refused) as refused:
        limits.reserve("c", Bounds(), "192.0.2.1", 1)
    assert refused.value.subject == "address"
    assert limits.keys["c"].in_flight == 0
    assert limits.reserve("c", Bounds(), "192.0.2.2", 1) is not None


def test_what_makes_no_difference_is_forgotten() -> None:
    clock = Clock()
    limits = limiter(clock, Bounds(concurrency=10_000))
    held = [limits.reserve(f"k{i}", Bounds(), f"192.0.2.{i}", 1) for i in range(200)]
    for made in held[1:]:
        made.cancel()
    clock.forward(70)
    limits.prune()
    assert set(limits.addresses) == {"192.0.2.0"}
    assert set(limits.keys) == {"k0"}


def test_the_expected_answer_follows_the_ninetieth_percentile() -> None:
    clock = Clock()
    limits = limiter(clock)
    for i in range(4000):
        limits.reserve("a", Bounds(), "", 1).settle(0, 1 + (i * 37) % 100)
    assert 75 <= limits.expected("a", None) <= 105
    assert limits.expected("a", 12) == 12
    assert limits.expected("nobody", None) == 256
