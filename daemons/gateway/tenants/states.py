"""What is told of accounts and reservations to another process, or to a later one.

Interpreted, as everything that is decoded: a compiled class does not keep what its annotations say.
"""

import msgspec

from daemons.gateway.tenants.windows import Charge

HoldState = tuple[int, int, int, int, int]
"""Slots of the charges of a request and its tokens, tokens reserved, day, month."""


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
    holds: list[HoldState]


class LimiterState(msgspec.Struct, frozen=True):
    """A `Limiter`, exported at a monotonic and a wall time."""

    monotonic: float
    wall: float
    keys: dict[str, AccountState]
    addresses: dict[str, AccountState]
    open: list[OpenReservation] = []
