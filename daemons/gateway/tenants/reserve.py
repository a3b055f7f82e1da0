"""What a key may use: reserved before a request goes anywhere, settled after its end."""

from typing import Protocol

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.relay.sse import TokenCounts
from daemons.gateway.tenants.keys import Tenant


class Reservation(Protocol):
    """What a request holds of its key's limits."""

    def settle(self, counts: TokenCounts) -> None:
        """The request has ended and used `counts`; called exactly once."""


class Limits(Protocol):
    """Decides whether a key may use more."""

    def reserve(self, tenant: Tenant, prompt_tokens: int) -> Reservation:
        """Take a request with an estimated prompt of `prompt_tokens` out of the tenant's limits.

        Raises:
            ApiError: a limit is reached; nothing was taken.
        """


class _Place:
    __slots__ = ("_alias", "_taken")

    def __init__(self, taken: dict[str, int], alias: str) -> None:
        self._taken = taken
        self._alias = alias

    def settle(self, counts: TokenCounts) -> None:
        left = self._taken[self._alias] - 1
        if left:
            self._taken[self._alias] = left
        else:
            del self._taken[self._alias]


class Concurrency:
    """`Limits` that holds keys to their number of requests at once.

    Attributes:
        taken: requests in flight by alias; keys without any are not in it.
    """

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def reserve(self, tenant: Tenant, prompt_tokens: int) -> Reservation:
        taken = self.taken.get(tenant.alias, 0)
        bound = tenant.limits.concurrency
        if bound is not None and taken >= bound:
            raise ApiError(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"This API key may have {bound} requests in flight, and has as many.",
                headers={"Retry-After": "1"},
            )
        self.taken[tenant.alias] = taken + 1
        return _Place(self.taken, tenant.alias)
