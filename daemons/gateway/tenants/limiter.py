"""Limits of keys and addresses: reserved before a request goes anywhere, settled after its end.

Pure: it decides at once, on this process' own state, by the clocks it is given.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

import msgspec

from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.windows import Budget, Charge, Window, slots

Dimension = Literal["requests", "tokens", "concurrency", "day", "month"]
Subject = Literal["key", "address"]

_FIRST_EXPECTED = 256.0
_RISE, _FALL = 0.09, 0.01
"""Steps of the running 90th percentile: they balance where one answer in ten is longer."""
_DAY = 86400
_PRUNED_AT_ONCE = 1000


class Refused(Exception):
    """A limit is reached; nothing was taken.

    Attributes:
        subject: whose limit.
        dimension: which.
        limit: its figure.
        wait: seconds after which the same request would pass, if nothing else happens.
        account: where it stands.
    """

    def __init__(
        self, subject: Subject, dimension: Dimension, limit: int, wait: float, account: "Account"
    ) -> None:
        super().__init__(dimension)
        self.subject: Subject = subject
        self.dimension: Dimension = dimension
        self.limit = limit
        self.wait = wait
        self.account = account


class Periods(msgspec.Struct, frozen=True):
    """The calendar day and month (UTC) of a moment, as numbers, and the POSIX times at which they end."""

    day: int
    month: int
    day_ends: float
    month_ends: float


def periods_of(wall: float) -> Periods:
    """The periods that the POSIX time `wall` is in."""
    day = int(wall // _DAY)
    date = dt.datetime.fromtimestamp(day * _DAY, dt.UTC)
    month = date.year * 12 + date.month
    following = date.replace(year=month // 12, month=month % 12 + 1, day=1)
    return Periods(day, month, (day + 1) * _DAY, following.timestamp())


class Account:
    """What one key or address uses.

    Attributes:
        in_flight: requests that hold a reservation.
        requests: begun within the last minute.
        tokens: of requests begun within the last minute; reserved, or used where they have ended.
        days: tokens by day.
        months: tokens by month.
        expected: running 90th percentile of the tokens of an answer.
    """

    __slots__ = ("days", "expected", "in_flight", "months", "requests", "tokens")

    def __init__(self) -> None:
        self.in_flight = 0
        self.requests = Window()
        self.tokens = Window()
        self.days = Budget()
        self.months = Budget()
        self.expected = _FIRST_EXPECTED

    def check(
        self, subject: Subject, bounds: Bounds, tokens: int, *, now: float, wall: float, at: Periods
    ) -> None:
        """Whether a request of `tokens` fits.

        A single request larger than a limit passes where nothing else was used: estimates may be wrong.

        Raises:
            Refused: it does not.
        """
        limit = bounds.concurrency
        if limit is not None and self.in_flight >= limit:
            raise Refused(subject, "concurrency", limit, 1.0, self)
        limit = bounds.requests_per_minute
        if limit is not None and self.requests.advance(now) >= limit:
            raise Refused(subject, "requests", limit, self.requests.wait(1, limit, now), self)
        limit = bounds.tokens_per_minute
        if limit is not None:
            cost = min(tokens, limit)
            if self.tokens.advance(now) + cost > limit:
                raise Refused(subject, "tokens", limit, self.tokens.wait(cost, limit, now), self)
        limit = bounds.tokens_per_day
        if limit is not None and self.days.of(at.day) + min(tokens, limit) > limit:
            raise Refused(subject, "day", limit, at.day_ends - wall, self)
        limit = bounds.tokens_per_month
        if limit is not None and self.months.of(at.month) + min(tokens, limit) > limit:
            raise Refused(subject, "month", limit, at.month_ends - wall, self)

    def take(self, tokens: int, now: float, at: Periods) -> "Hold":
        """Reserve `tokens` for a request."""
        self.in_flight += 1
        self.days.add(at.day, tokens)
        self.months.add(at.month, tokens)
        return Hold(self, self.requests.add(1, now), self.tokens.add(tokens, now), tokens, at.day, at.month)

    def learn(self, completion: int) -> None:
        """An answer had so many tokens."""
        if completion > self.expected:
            self.expected += _RISE * max(self.expected, 16.0)
        else:
            self.expected -= _FALL * self.expected

    def used(self, bounds: Bounds, now: float, at: Periods) -> Iterator[tuple[Dimension, float]]:
        """The share of each limit of `bounds` that is used; more than 1 where a request was larger."""
        dimensions: tuple[tuple[Dimension, int | None, int], ...] = (
            ("concurrency", bounds.concurrency, self.in_flight),
            ("requests", bounds.requests_per_minute, self.requests.advance(now)),
            ("tokens", bounds.tokens_per_minute, self.tokens.advance(now)),
            ("day", bounds.tokens_per_day, self.days.of(at.day)),
            ("month", bounds.tokens_per_month, self.months.of(at.month)),
        )
        for dimension, limit, use in dimensions:
            if limit is not None:
                yield dimension, use / limit

    def idle(self, now: float) -> bool:
        """Whether it can be forgotten without a difference to anybody's minute."""
        left = self.requests.advance(now) + self.tokens.advance(now)
        return not left and not self.in_flight


class Hold(msgspec.Struct, eq=False):
    """A request's part of one account, given back once."""

    account: Account
    request: Charge
    tokens: Charge
    reserved: int
    day: int
    month: int

    def settle(self, used: int, now: float) -> None:
        """The request has ended and used so many tokens."""
        account, over = self.account, used - self.reserved
        account.in_flight -= 1
        account.tokens.correct(self.tokens, over, now)
        account.days.add(self.day, over)
        account.months.add(self.month, over)

    def cancel(self, now: float) -> None:
        """The request never came to an engine: as if it had not been."""
        self.account.requests.correct(self.request, -1, now)
        self.settle(0, now)

    def export(self) -> tuple[int, int, int, int, int]:
        """Slots of its charges, tokens reserved, day and month."""
        return (self.request[0], self.tokens[0], self.reserved, self.day, self.month)


class Reservation(msgspec.Struct, eq=False):
    """What a request holds of its key's limits, and of its address'.

    Whichever of `settle` and `cancel` is called first is the one that counts.

    Attributes:
        limiter: where it is held.
        number: tells it from every other one of this process.
        alias: of the key.
        address: of the client, where addresses have limits; else empty.
        holds: its parts.
    """

    limiter: "Limiter"
    number: int
    alias: str
    address: str
    holds: tuple[Hold, ...]

    def settle(self, prompt: int, completion: int) -> bool:
        """The request has ended and used so many tokens; False where that was said before."""
        if self.limiter.open.pop(self.number, None) is None:
            return False
        now = self.limiter.monotonic()
        for hold in self.holds:
            hold.settle(prompt + completion, now)
        if completion:
            account = self.limiter.keys.get(self.alias)
            if account is not None:
                account.learn(completion)
        return True

    def cancel(self) -> bool:
        """The request never came to an engine and costs nothing; False where it was settled before."""
        if self.limiter.open.pop(self.number, None) is None:
            return False
        now = self.limiter.monotonic()
        for hold in self.holds:
            hold.cancel(now)
        return True

    def export(self) -> "OpenReservation":
        """As handed over to another process."""
        return OpenReservation(self.number, self.alias, self.address, [hold.export() for hold in self.holds])


class Limiter:
    """The accounts of keys and addresses.

    Attributes:
        keys: accounts by alias.
        addresses: accounts by address.
        open: reservations not yet settled, by number.
        monotonic: the clock of minutes.
        wall: the clock of days and months.
    """

    def __init__(
        self, address_bounds: Bounds, monotonic: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._address_bounds = address_bounds if address_bounds != Bounds() else None
        self.monotonic = monotonic
        self.wall = wall
        self.keys: dict[str, Account] = {}
        self.addresses: dict[str, Account] = {}
        self.open: dict[int, Reservation] = {}
        self._number = 0
        self._periods = periods_of(wall())

    @property
    def limits_addresses(self) -> bool:
        """Whether addresses have limits."""
        return self._address_bounds is not None

    def expected(self, alias: str, most: int | None) -> int:
        """Tokens to expect of an answer that may have `most`; None is as many as the model makes."""
        account = self.keys.get(alias)
        usual = int(account.expected if account is not None else _FIRST_EXPECTED)
        return usual if most is None or most > usual else most

    def reserve(
        self, alias: str, bounds: Bounds, address: str, tokens: int, *, force: bool = False
    ) -> Reservation:
        """Take a request of about `tokens` out of the limits of a key and an address.

        Args:
            alias: of the key.
            bounds: of the key.
            address: of the client; empty where none is known.
            tokens: of the prompt and the answer.
            force: take it whatever the limits, because somebody else has let it in.

        Raises:
            Refused: a limit is reached; nothing was taken.
        """
        now, at = self.monotonic(), self.periods()
        account = self.keys.get(alias)
        if account is None:
            account = self.keys[alias] = Account()
        if not force:
            account.check("key", bounds, tokens, now=now, wall=self.wall(), at=at)
        if self._address_bounds is None or not address:
            address = ""
            holds: tuple[Hold, ...] = (account.take(tokens, now, at),)
        else:
            theirs = self.addresses.get(address)
            if theirs is None:
                theirs = self.addresses[address] = Account()
            if not force:
                theirs.check("address", self._address_bounds, tokens, now=now, wall=self.wall(), at=at)
            holds = (account.take(tokens, now, at), theirs.take(tokens, now, at))
        self._number += 1
        made = Reservation(self, self._number, alias, address, holds)
        self.open[made.number] = made
        return made

    def periods(self) -> Periods:
        """The present day and month."""
        wall, periods = self.wall(), self._periods
        if not periods.day_ends - _DAY <= wall < periods.day_ends:
            periods = self._periods = periods_of(wall)
        return periods

    def prune(self) -> None:
        """Called every few seconds: forget accounts that make no difference any more, some at a time."""
        now, at = self.monotonic(), self.periods()
        budgets = self._address_bounds is not None and (
            self._address_bounds.tokens_per_day or self._address_bounds.tokens_per_month
        )
        for accounts, keep_budgets in ((self.addresses, bool(budgets)), (self.keys, True)):
            for name, account in list(islice(accounts.items(), _PRUNED_AT_ONCE)):
                used = keep_budgets and account.months.of(at.month)
                del accounts[name]
                if not account.idle(now) or used:
                    # To the end of the line, so that every account has its turn.
                    accounts[name] = account

    def export(self) -> "LimiterState":
        """Everything, for another process or a later one."""
        return LimiterState(
            monotonic=self.monotonic(),
            wall=self.wall(),
            keys={name: _export(account) for name, account in self.keys.items()},
            addresses={name: _export(account) for name, account in self.addresses.items()},
            open=[reservation.export() for reservation in self.open.values()],
        )

    def restore(self, state: "LimiterState", *, same_boot: bool) -> dict[int, Reservation]:
        """Go on from `state`; its open reservations, by the number they had there.

        Args:
            state: of the former process.
            same_boot: its monotonic clock is this process' too; otherwise the wall clock tells its age.
        """
        age = 0.0
        if not same_boot:
            age = max(0.0, self.wall() - state.wall) - (self.monotonic() - state.monotonic)
        shift = -slots(age)
        for exported, accounts in ((state.keys, self.keys), (state.addresses, self.addresses)):
            for name, given in exported.items():
                accounts[name] = _restore(given, shift)
        found = {}
        for held in state.open:
            of = [self.keys.get(held.alias), self.addresses.get(held.address)]
            holds = [
                _restore_hold(a, h, shift) for a, h in zip(of, held.holds, strict=False) if a is not None
            ]
            self._number += 1
            made = Reservation(self, self._number, held.alias, held.address, tuple(holds))
            self.open[made.number] = found[held.number] = made
        return found


class AccountState(msgspec.Struct, frozen=True):
    """An `Account`, exported; what is in flight follows from the open reservations."""

    requests: list[Charge]
    tokens: list[Charge]
    days: dict[int, int]
    months: dict[int, int]
    expected: float


class OpenReservation(msgspec.Struct, frozen=True):
    """A `Reservation`, exported."""

    number: int
    alias: str
    address: str
    holds: list[tuple[int, int, int, int, int]]


class LimiterState(msgspec.Struct, frozen=True):
    """A `Limiter`, exported at a monotonic and a wall time."""

    monotonic: float
    wall: float
    keys: dict[str, AccountState]
    addresses: dict[str, AccountState]
    open: list[OpenReservation] = []


def _export(account: Account) -> AccountState:
    return AccountState(
        account.requests.export(),
        account.tokens.export(),
        dict(account.days.used),
        dict(account.months.used),
        account.expected,
    )


def _restore(given: AccountState, shift: int) -> Account:
    account = Account()
    account.requests = Window([[slot + shift, amount] for slot, amount in given.requests])
    account.tokens = Window([[slot + shift, amount] for slot, amount in given.tokens])
    account.days, account.months = Budget(given.days), Budget(given.months)
    account.expected = given.expected
    return account


def _restore_hold(account: Account, given: tuple[int, int, int, int, int], shift: int) -> Hold:
    request, tokens, reserved, day, month = given
    account.in_flight += 1
    return Hold(
        account,
        account.requests.charge_at(request + shift),
        account.tokens.charge_at(tokens + shift),
        reserved,
        day,
        month,
    )
