"""What one key or address uses, and what a request holds of it. Pure: every time is given."""

import datetime as dt
from collections.abc import Iterator
from typing import Literal

import msgspec

from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.windows import Budget, Charge, Window

Dimension = Literal["requests", "tokens", "concurrency", "day", "month"]
Subject = Literal["key", "address"]
HoldState = tuple[int, int, int, int, int]
"""Slots of the charges of a request and its tokens, tokens reserved, day, month."""

FIRST_EXPECTED = 256.0
"""Tokens to expect of an answer while nothing is known."""
_RISE, _FALL = 0.09, 0.01
"""Steps of the running 90th percentile: they balance where one answer in ten is longer."""
DAY = 86400


class Refused(Exception):
    """A limit is reached; nothing was taken.

    Attributes:
        subject: whose limit.
        dimension: which.
        limit: its figure.
        wait: seconds after which the same request would pass, if nothing else happens.
    """

    def __init__(self, subject: Subject, dimension: Dimension, limit: int, wait: float) -> None:
        super().__init__(dimension)
        self.subject: Subject = subject
        self.dimension: Dimension = dimension
        self.limit = limit
        self.wait = wait


class Periods(msgspec.Struct, frozen=True):
    """The calendar day and month (UTC) of a moment, as numbers, and the POSIX times at which they end."""

    day: int
    month: int
    day_ends: float
    month_ends: float


def periods_of(wall: float) -> Periods:
    """The periods that the POSIX time `wall` is in."""
    day = int(wall // DAY)
    date = dt.datetime.fromtimestamp(day * DAY, dt.UTC)
    month = date.year * 12 + date.month
    following = date.replace(year=month // 12, month=month % 12 + 1, day=1)
    return Periods(day, month, (day + 1) * DAY, following.timestamp())


class Account:
    """What one key or address uses.

    Attributes:
        subject: whether it is a key's or an address'.
        in_flight: requests that hold a reservation.
        requests: begun within the last minute.
        tokens: of requests begun within the last minute; reserved, or used where they have ended.
        days: tokens by day.
        months: tokens by month.
        expected: running 90th percentile of the tokens of an answer.
    """

    __slots__ = ("days", "expected", "in_flight", "months", "requests", "subject", "tokens")

    def __init__(self, subject: Subject) -> None:
        self.subject: Subject = subject
        self.in_flight = 0
        self.requests = Window()
        self.tokens = Window()
        self.days = Budget()
        self.months = Budget()
        self.expected = FIRST_EXPECTED

    def check(self, bounds: Bounds, tokens: int, now: float, wall: float, at: Periods) -> None:
        """Whether a request of `tokens` fits.

        A single request larger than a limit passes where nothing else was used: estimates may be wrong.

        Raises:
            Refused: it does not.
        """
        limit = bounds.concurrency
        if limit is not None and self.in_flight >= limit:
            raise Refused(self.subject, "concurrency", limit, 1.0)
        limit = bounds.requests_per_minute
        if limit is not None and self.requests.advance(now) >= limit:
            raise Refused(self.subject, "requests", limit, self.requests.wait(1, limit, now))
        limit = bounds.tokens_per_minute
        if limit is not None:
            cost = min(tokens, limit)
            if self.tokens.advance(now) + cost > limit:
                raise Refused(self.subject, "tokens", limit, self.tokens.wait(cost, limit, now))
        limit = bounds.tokens_per_day
        if limit is not None and self.days.of(at.day) + min(tokens, limit) > limit:
            raise Refused(self.subject, "day", limit, at.day_ends - wall)
        limit = bounds.tokens_per_month
        if limit is not None and self.months.of(at.month) + min(tokens, limit) > limit:
            raise Refused(self.subject, "month", limit, at.month_ends - wall)

    def take(self, tokens: int, now: float, at: Periods) -> "Hold":
        """Reserve `tokens` for a request."""
        self.in_flight += 1
        self.spend(at.day, at.month, tokens)
        return Hold(self, self.requests.add(1, now), self.tokens.add(tokens, now), tokens, at.day, at.month)

    def spend(self, day: int, month: int, tokens: int) -> None:
        """Use `tokens`, which may be negative, of a day and a month."""
        days, months = self.days.used, self.months.used
        if day in days and month in months:
            days[day] += tokens
            months[month] += tokens
        else:
            self.days.add(day, tokens)
            self.months.add(month, tokens)

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

    def export(self) -> "AccountState":
        """As handed over to another process, or to a later one."""
        return AccountState(
            self.requests.export(),
            self.tokens.export(),
            dict(self.days.used),
            dict(self.months.used),
            self.expected,
        )

    def hold(self, given: HoldState, shift: int) -> "Hold":
        """A hold that another process had on this account."""
        request, tokens, reserved, day, month = given
        self.in_flight += 1
        return Hold(
            self,
            self.requests.charge_at(request + shift),
            self.tokens.charge_at(tokens + shift),
            reserved,
            day,
            month,
        )

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
        account.spend(self.day, self.month, over)

    def cancel(self, now: float) -> None:
        """The request never came to an engine: as if it had not been."""
        self.account.requests.correct(self.request, -1, now)
        self.settle(0, now)

    def export(self) -> HoldState:
        """As handed over to another process."""
        return (self.request[0], self.tokens[0], self.reserved, self.day, self.month)


class AccountState(msgspec.Struct, frozen=True):
    """An `Account`, exported; what is in flight follows from the open reservations."""

    requests: list[Charge]
    tokens: list[Charge]
    days: dict[int, int]
    months: dict[int, int]
    expected: float

    def restore(self, subject: Subject, shift: int) -> Account:
        """The account, its charges `shift` slots later."""
        account = Account(subject)
        account.requests = Window([[slot + shift, amount] for slot, amount in self.requests])
        account.tokens = Window([[slot + shift, amount] for slot, amount in self.tokens])
        account.days, account.months = Budget(self.days), Budget(self.months)
        account.expected = self.expected
        return account
