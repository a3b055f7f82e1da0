"""Counting what was used within the last minute, and within calendar periods. Pure: every time is given."""

from collections import deque
from typing import Final

_PER_SECOND: Final = 2
_SECONDS: Final = 60.0
_SLOTS: Final = 60 * _PER_SECOND
_LONG_AGO: Final = -(1 << 40)
_NEVER: Final = 1 << 40

RENEWED_SECONDS: Final = 61
"""Whole seconds until nothing is left of what was used within this half second."""

Charge = list[int]
"""``[slot, amount]``: what was used in a half second. Mutable, so that a charge can be corrected later."""


class Window:
    """A sliding minute, exact to the half second it rounds up to: no 60 s see more than what `room` allows.

    Times are seconds of a monotonic clock.

    Attributes:
        total: used within the window, as of the last `advance`.
        busy_until: end of the half second in which it was used last.
    """

    __slots__ = ("_charges", "_latest", "_leaves", "_oldest", "busy_until", "total")

    def __init__(self, charges: list[Charge] | None = None) -> None:
        self._charges: deque[Charge] = deque(charges or ())
        self.total = sum(amount for _, amount in self._charges)
        # No charge is older than this slot, and none leaves the window before this time.
        self._find_oldest()
        # May be gone already.
        self._latest: Charge = self._charges[-1] if self._charges else [_LONG_AGO, 0]
        self.busy_until = _end_of(self._latest[0])

    def advance(self, now: float) -> int:
        """Let go of what is older than a minute; what is left."""
        if now >= self._leaves:
            self._let_go(now)
        return self.total

    def _let_go(self, now: float) -> None:
        oldest, charges = int(now * _PER_SECOND) - _SLOTS, self._charges
        while charges and charges[0][0] < oldest:
            self.total -= charges.popleft()[1]
        self._find_oldest()

    def _find_oldest(self) -> None:
        self._oldest = self._charges[0][0] if self._charges else _NEVER
        self._leaves = _end_of(self._oldest) + _SECONDS

    def add(self, amount: int, now: float) -> Charge:
        """Use `amount`; the charge can be given to `correct`."""
        charge = self._latest if now < self.busy_until else self._begin(now)
        charge[1] += amount
        self.total += amount
        return charge

    def _begin(self, now: float) -> Charge:
        slot = int(now * _PER_SECOND)
        self._latest = made = [slot, 0]
        self.busy_until = _end_of(slot)
        self._charges.append(made)
        if self._oldest == _NEVER:
            self._find_oldest()
        return made

    def correct(self, charge: Charge, by: int, now: float) -> None:
        """More was used than was charged, which counts from now, or less, which counts from then."""
        if by > 0:
            self.add(by, now)
        elif charge[0] >= self._oldest:
            charge[1] += by
            self.total += by

    def wait(self, amount: int, limit: int, now: float) -> float:
        """Seconds until `amount` fits under `limit`; `amount` is no more than `limit`."""
        excess = self.total + amount - limit
        for slot, charged in self._charges:
            if excess <= 0:
                break
            excess -= charged
            if excess <= 0:
                return max(0.0, _end_of(slot) + _SECONDS - now)
        return 0.0

    def standing(self, limit: int, now: float) -> tuple[int, int]:
        """What is left of `limit`, and whole seconds until nothing is used of it any more."""
        total, seconds = self.total, self.busy_until + _SECONDS - now
        return limit - total if total < limit else 0, int(seconds) + 1 if seconds >= 0 else 0

    def charge_at(self, slot: int) -> Charge:
        """The charge of `slot`; one outside of the window where there is none."""
        return next((charge for charge in self._charges if charge[0] == slot), [slot, 0])

    def export(self, shift: int = 0) -> list[Charge]:
        """Its charges, `shift` slots later."""
        return [[slot + shift, amount] for slot, amount in self._charges if amount]


def _end_of(slot: int) -> float:
    return (slot + 1) / _PER_SECOND


def slots(seconds: float) -> int:
    """`seconds` as a number of slots."""
    return int(seconds * _PER_SECOND)


_KEPT_PERIODS: Final = 4


class Budget:
    """What was used in each of the latest periods.

    Some former ones are kept: a clock that jumps and jumps back finds them as they were.
    """

    __slots__ = ("used",)

    def __init__(self, used: dict[int, int] | None = None) -> None:
        self.used: dict[int, int] = dict(used or {})

    def of(self, period: int) -> int:
        """Used in `period`."""
        return self.used.get(period, 0)

    def add(self, period: int, amount: int) -> None:
        """Use `amount`, which may be negative, in `period`."""
        used = self.used
        if period in used:
            used[period] += amount
        else:
            used[period] = amount
            while len(used) > _KEPT_PERIODS:
                del used[next(iter(used))]
