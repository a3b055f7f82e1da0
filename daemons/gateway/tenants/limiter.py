"""Limits of keys and addresses: reserved before a request goes anywhere, settled after its end.

Pure: it decides at once, on this process' own state, by the clocks it is given.
"""

from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from daemons.gateway.tenants.accounts import (
    FIRST_EXPECTED,
    Account,
    Part,
    Periods,
    day_of,
    periods_of,
    restored,
)
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.states import LimiterState, OpenReservation
from daemons.gateway.tenants.windows import slots

_PRUNED_AT_ONCE: Final = 1000


class Elsewhere(Protocol):
    """Somebody else who counts a reservation too; neither call waits."""

    def settled(self, reservation: "Reservation", used: int) -> None:
        """The request has ended and used so many tokens."""

    def cancelled(self, reservation: "Reservation") -> None:
        """The request never came to an engine."""


class Reservation:
    """What a request holds of its key's limits, and of its address'.

    Whichever of `settle` and `cancel` is called first is the one that counts.

    Attributes:
        limiter: where it is held.
        number: tells it from every other one of this process.
        alias: of the key.
        address: of the client, where addresses have limits; else empty.
        tokens: what was reserved.
        at: the day and month from which that was taken.
        parts: what it holds of the key's account, and, in second place, of the address'.
        elsewhere: who else counts it.
    """

    __slots__ = ("address", "alias", "at", "elsewhere", "limiter", "number", "parts", "tokens")

    def __init__(
        self,
        limiter: "Limiter",
        number: int,
        alias: str,
        *,
        address: str,
        tokens: int,
        at: Periods,
        parts: tuple[Part, ...],
    ) -> None:
        self.limiter = limiter
        self.number = number
        self.alias = alias
        self.address = address
        self.tokens = tokens
        self.at = at
        self.parts = parts
        self.elsewhere: tuple[Elsewhere, ...] = ()

    def settle(self, prompt: int, completion: int) -> bool:
        """The request has ended and used so many tokens; False where that was said before."""
        limiter = self.limiter
        if limiter.open.pop(self.number, None) is None:
            return False
        used = prompt + completion
        over = used - self.tokens
        # Only what is used beyond the reservation counts from now.
        now = limiter.monotonic() if over > 0 else 0.0
        for account, _, charge in self.parts:
            account.settle(charge, over, completion, self.at, now)
        for other in self.elsewhere:
            other.settled(self, used)
        return True

    def cancel(self) -> bool:
        """The request never came to an engine and costs nothing; False where it was settled before."""
        if self.limiter.open.pop(self.number, None) is None:
            return False
        now = self.limiter.monotonic()
        for account, request, charge in self.parts:
            account.requests.correct(request, -1, now)
            account.settle(charge, -self.tokens, 0, self.at, now)
        for other in self.elsewhere:
            other.cancelled(self)
        return True

    def lose(self) -> bool:
        """Nobody will say what the request used: the estimate stands; False where it was settled before."""
        return self.settle(self.tokens, 0)

    def export(self) -> OpenReservation:
        """As handed over to another process."""
        holds = [
            (request[0], charge[0], self.tokens, self.at.day, self.at.month)
            for _, request, charge in self.parts
        ]
        return OpenReservation(self.number, self.alias, self.address, holds)


class Limiter:
    """The accounts of keys and addresses.

    Attributes:
        keys: accounts by alias.
        addresses: accounts by address.
        open: reservations not yet settled, by number.
        limits_addresses: addresses have limits.
        monotonic: the clock of minutes.
        wall: the clock of days and months.
    """

    def __init__(
        self, address_bounds: Bounds, monotonic: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._address_bounds = address_bounds if address_bounds != Bounds() else None
        self.limits_addresses = self._address_bounds is not None
        self.monotonic = monotonic
        self.wall = wall
        self.keys: dict[str, Account] = {}
        self.addresses: dict[str, Account] = {}
        self.open: dict[int, Reservation] = {}
        self._number = 0
        self._periods = periods_of(wall())

    def expected(self, alias: str, most: int | None) -> int:
        """Tokens to expect of an answer that may have `most`; None is as many as the model makes."""
        account = self.keys.get(alias)
        usual = account.expected if account is not None else FIRST_EXPECTED
        return int(usual) if most is None or most > usual else most

    def reserve(self, alias: str, bounds: Bounds, address: str, tokens: int) -> Reservation:
        """Take a request of about `tokens` out of the limits of a key and an address.

        Args:
            alias: of the key.
            bounds: of the key.
            address: of the client; empty where none is known.
            tokens: of the prompt and the answer.

        Raises:
            Refused: a limit is reached; nothing was taken.
        """
        now, wall, at = self.monotonic(), self.wall(), self._periods
        if not at.day_begins <= wall < at.day_ends:
            at = self.periods()
        account = self.keys.get(alias)
        if account is None:
            account = self.keys[alias] = Account("key")
        account.check(bounds, tokens, now, wall, at)
        if self._address_bounds is None or not address:
            address = ""
            parts: tuple[Part, ...] = (account.take(tokens, now, at),)
        else:
            theirs = self.addresses.get(address)
            if theirs is None:
                theirs = self.addresses[address] = Account("address")
            theirs.check(self._address_bounds, tokens, now, wall, at)
            parts = (account.take(tokens, now, at), theirs.take(tokens, now, at))
        self._number = number = self._number + 1
        made = self.open[number] = Reservation(
            self, number, alias, address=address, tokens=tokens, at=at, parts=parts
        )
        return made

    def periods(self) -> Periods:
        """The present day and month."""
        wall, periods = self.wall(), self._periods
        if not periods.day_begins <= wall < periods.day_ends:
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

    def export(self) -> LimiterState:
        """Everything, for another process or a later one."""
        return LimiterState(
            monotonic=self.monotonic(),
            wall=self.wall(),
            keys={name: account.export() for name, account in self.keys.items()},
            addresses={name: account.export() for name, account in self.addresses.items()},
            open=[reservation.export() for reservation in self.open.values()],
        )

    def restore(self, state: LimiterState, *, same_boot: bool) -> dict[int, Reservation]:
        """Go on from `state`; its open reservations, by the number they had there.

        Args:
            state: of the former process.
            same_boot: its monotonic clock is this process' too; otherwise the wall clock tells its age.
        """
        age = 0.0
        if not same_boot:
            age = max(0.0, self.wall() - state.wall) - (self.monotonic() - state.monotonic)
        shift = -slots(age)
        for name, given in state.keys.items():
            self.keys[name] = restored(given, "key", shift)
        for name, given in state.addresses.items():
            self.addresses[name] = restored(given, "address", shift)
        found = {}
        for held in state.open:
            if not held.holds:
                continue
            accounts = [self.keys.setdefault(held.alias, Account("key"))]
            if held.address in self.addresses:
                accounts.append(self.addresses[held.address])
            parts = tuple(a.held(hold, shift) for a, hold in zip(accounts, held.holds, strict=False))
            # All of it was taken at once: the same tokens, of the same day.
            _, _, tokens, day, _ = held.holds[0]
            self._number += 1
            made = Reservation(
                self,
                self._number,
                held.alias,
                address=held.address,
                tokens=tokens,
                at=day_of(day),
                parts=parts,
            )
            self.open[made.number] = found[held.number] = made
        return found
