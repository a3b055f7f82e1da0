"""Counting what was used within the last minute, and within calendar periods. Pure: every time is given."""

from collections import deque

_PER_SECOND = 2
_SLOTS = 60 * _PER_SECOND

Charge = list[int]
"""``[slot, amount]``: what was used in a half second. Mutable, so that a charge can be corrected later."""


_NO_CHARGE = -(1 << 40)


class Window:
    """A sliding minute, exact to the half second it rounds up to: no 60 s see more than what `room` allows.

    Times are seconds of a monotonic clock.

    Attributes:
        total: used within the window, as of the last `advance`.
    """

    __slots__ = ("_charges", "_latest", "_oldest", "total")

    def __init__(self, charges: list[Charge] | None = None) -> None:
        self._charges: deque[Charge] = deque(charges or ())
        self.total = sum(amount for _, amount in self._charges)
        # No charge is older than this; and the last charge, which may be gone already.
        self._oldest = self._charges[0][0] if self._charges else 0
        self._latest: Charge = self._charges[-1] if self._charges else [_NO_CHARGE, 0]

    def advance(self, now: float) -> int:
        """Let go of what is older than a minute; what is left."""
        oldest = int(now * _PER_SECOND) - _SLOTS
        if self._oldest < oldest:
            charges = self._charges
            while charges and charges[0][0] < oldest:
                self.total -= charges.popleft()[1]
            self._oldest = charges[0][0] if charges else oldest
        return self.total

    def add(self, amount: int, now: float) -> Charge:
        """Use `amount`; the charge can be given to `correct`."""
        slot = int(now * _PER_SECOND)
        self.total += amount
        charge = self._latest
        if charge[0] >= slot:
            charge[1] += amount
            return charge
        if not self._charges:
            self._oldest = slot
        self._latest = made = [slot, amount]
        self._charges.append(made)
        return made

    def correct(self, charge: Charge, by: int, now: float) -> None:
        """More was used than was charged, which counts from now, or less, which counts from then."""
        if by > 0:
            self.add(by, now)
        elif by < 0 and self._charges and charge[0] >= self._oldest:
            charge[1] += by
            self.total += by

    def wait(self, amount: int, limit: int, now: float) -> float:
        """Seconds until `amount` fits under `limit`; `amount` is no more than `limit`."""
        excess = self.total + amount - limit
        for slot, charged in self._charges:
            if excess <= 0:
                break
            excess -= charged
            freed = (slot + _SLOTS + 1) / _PER_SECOND
            if excess <= 0:
                return max(0.0, freed - now)
        return 0.0

    def standing(self, limit: int, now: float) -> tuple[int, int, int]:
        """`limit`, what is left of it, and whole seconds until nothing is used of it any more."""
        left, seconds = limit - self.total, (self._latest[0] + _SLOTS + 1) / _PER_SECOND - now
        left = max(left, 0)
        return limit, left, int(seconds) + 1 if seconds >= 0 else 0

    def charge_at(self, slot: int) -> Charge:
        """The charge of `slot`; one outside of the window where there is none."""
        return next((charge for charge in self._charges if charge[0] == slot), [slot, 0])

    def export(self, shift: int = 0) -> list[Charge]:
        """Its charges, `shift` slots later."""
        return [[slot + shift, amount] for slot, amount in self._charges if amount]


def slots(seconds: float) -> int:
    """`seconds` as a number of slots."""
    return int(seconds * _PER_SECOND)


_KEPT_PERIODS = 4


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
