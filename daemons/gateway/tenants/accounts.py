"""What one key or address uses, and what a request holds of it. Pure: every time is given."""

import datetime as dt
from collections.abc import Iterator
from typing import Final, Literal

from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.states import AccountState, HoldState
from daemons.gateway.tenants.windows import Budget, Charge, Window

Dimension = Literal["requests", "tokens", "concurrency", "day", "month"]
Subject = Literal["key", "address"]

FIRST_EXPECTED: Final = 256.0
"""Tokens to expect of an answer while nothing is known."""
_RISE: Final = 0.09
_FALL: Final = 0.01
"""Steps of the running 90th percentile: they balance where one answer in ten is longer."""
_DAY: Final = 86400.0


class Refused(Exception):
    """A limit is reached; nothing was taken.

    Attributes:
        subject: whose limit.
        dimension: which.
        limit: its figure.
        wait: seconds after which the same request would pass, if nothing else happens.
        left: what is left of a limit of tokens, where that is known.
    """

    def __init__(
        self, subject: Subject, dimension: Dimension, limit: int, wait: float, left: int | None = None
    ) -> None:
        super().__init__(dimension)
        self.subject: Subject = subject
        self.dimension: Dimension = dimension
        self.limit = limit
        self.wait = wait
        self.left = left


class Periods:
    """The calendar day and month (UTC) of a moment, as numbers, and the POSIX times of their ends."""

    __slots__ = ("day", "day_begins", "day_ends", "month", "month_ends")

    def __init__(self, day: int, month: int, month_ends: float) -> None:
        self.day = day
        self.month = month
        self.day_begins = day * _DAY
        self.day_ends = (day + 1) * _DAY
        self.month_ends = month_ends


def day_of(number: int) -> Periods:
    """The periods of the day of this number."""
    return periods_of(number * _DAY)


def periods_of(wall: float) -> Periods:
    """The periods that the POSIX time `wall` is in."""
    day = int(wall // _DAY)
    date = dt.datetime.fromtimestamp(day * _DAY, dt.UTC)
    month = date.year * 12 + date.month
    following = date.replace(year=month // 12, month=month % 12 + 1, day=1)
    return Periods(day, month, following.timestamp())


class Account:
    """What one key or address uses.

    Attributes:
        subject: whether it is a key's or an address'.
        in_flight: requests that hold a reservation.
        requests: begun within the last minute.
        tokens: of requests begun within the last minute; reserved, or used where they have ended.
        expected: running 90th percentile of the tokens of an answer.
    """

    __slots__ = (
        "_day",
        "_days",
        "_month",
        "_months",
        "_spent",
        "expected",
        "in_flight",
        "requests",
        "subject",
        "tokens",
    )

    def __init__(self, subject: Subject, days: Budget | None = None, months: Budget | None = None) -> None:
        self.subject: Subject = subject
        self.in_flight = 0
        self.requests = Window()
        self.tokens = Window()
        self.expected = FIRST_EXPECTED
        self._days = days or Budget()
        self._months = months or Budget()
        # The period that is spent of at present, and what of it the budgets have yet to be told.
        self._day = self._month = 0
        self._spent = 0

    def check(self, bounds: Bounds, tokens: int, now: float, wall: float, at: Periods) -> None:
        """Whether a request of `tokens` fits.

        A single request larger than a limit passes where nothing else was used: estimates may be wrong.

        Raises:
            Refused: it does not.
        """
        concurrency, requests, minute, day, month = bounds.figures
        if concurrency is not None and self.in_flight >= concurrency:
            raise Refused(self.subject, "concurrency", concurrency, 1.0)
        if requests is not None and self.requests.advance(now) >= requests:
            raise Refused(self.subject, "requests", requests, self.requests.wait(1, requests, now))
        if minute is not None:
            used = self.tokens.advance(now)
            if used > 0 and used + tokens > minute:
                wait = self.tokens.wait(min(tokens, minute), minute, now)
                raise Refused(self.subject, "tokens", minute, wait, max(0, minute - used))
        if day is not None:
            used = self.days.of(at.day)
            if used > 0 and used + tokens > day:
                raise Refused(self.subject, "day", day, at.day_ends - wall, max(0, day - used))
        if month is not None:
            used = self.months.of(at.month)
            if used > 0 and used + tokens > month:
                raise Refused(self.subject, "month", month, at.month_ends - wall, max(0, month - used))

    def take(self, tokens: int, now: float, at: Periods) -> "Part":
        """Reserve `tokens` for a request."""
        self.in_flight += 1
        if at.day != self._day:
            self._turn_to(at)
        self._spent += tokens
        return self, self.requests.add(1, now), self.tokens.add(tokens, now)

    def settle(self, charge: Charge, over: int, completion: int, at: Periods, now: float) -> None:
        """A request has ended.

        Args:
            charge: of its tokens.
            over: what it used beyond those.
            completion: tokens of its answer; 0 where it had none.
            at: when it was taken.
            now: monotonic time; of no matter unless it used more.
        """
        self.in_flight -= 1
        self.tokens.correct(charge, over, now)
        if at.day != self._day:
            self._turn_to(at)
        self._spent += over
        if completion > self.expected:
            self.expected += _RISE * max(self.expected, 16.0)
        elif completion:
            self.expected -= _FALL * self.expected

    def _turn_to(self, at: Periods) -> None:
        self._book()
        self._day, self._month = at.day, at.month
        self._days.add(at.day, 0)
        self._months.add(at.month, 0)

    @property
    def days(self) -> Budget:
        """Tokens by day."""
        self._book()
        return self._days

    @property
    def months(self) -> Budget:
        """Tokens by month."""
        self._book()
        return self._months

    def _book(self) -> None:
        if self._spent:
            self._days.add(self._day, self._spent)
            self._months.add(self._month, self._spent)
            self._spent = 0

    def used(self, bounds: Bounds, now: float, at: Periods) -> Iterator[tuple[Dimension, float]]:
        """The share of each limit of `bounds` that is used; more than 1 where a request was larger."""
        uses: tuple[tuple[Dimension, int], ...] = (
            ("concurrency", self.in_flight),
            ("requests", self.requests.advance(now)),
            ("tokens", self.tokens.advance(now)),
            ("day", self.days.of(at.day)),
            ("month", self.months.of(at.month)),
        )
        for limit, (dimension, use) in zip(bounds.figures, uses, strict=True):
            if limit is not None:
                yield dimension, use / limit

    def export(self) -> AccountState:
        """As handed over to another process, or to a later one."""
        return AccountState(
            self.requests.export(),
            self.tokens.export(),
            dict(self.days.used),
            dict(self.months.used),
            self.expected,
        )

    def held(self, given: HoldState, shift: int) -> "Part":
        """What a request of another process holds of this account."""
        self.in_flight += 1
        return self, self.requests.charge_at(given[0] + shift), self.tokens.charge_at(given[1] + shift)

    def idle(self, now: float) -> bool:
        """Whether it can be forgotten without a difference to anybody's minute."""
        left = self.requests.advance(now) + self.tokens.advance(now)
        return not left and not self.in_flight


Part = tuple[Account, Charge, Charge]
"""What a request holds of one account: the charges of itself and of its tokens."""


def restored(state: AccountState, subject: Subject, shift: int) -> Account:
    """The account that was exported, its charges `shift` slots later."""
    account = Account(subject, Budget(state.days), Budget(state.months))
    account.requests = Window([[slot + shift, amount] for slot, amount in state.requests])
    account.tokens = Window([[slot + shift, amount] for slot, amount in state.tokens])
    account.expected = state.expected
    return account
