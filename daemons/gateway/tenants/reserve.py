"""What a request may use: reserved before it goes anywhere, settled after its end."""

import math
from typing import Protocol

import structlog

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.metrics import Counter
from daemons.gateway.tenants.accounts import Refused
from daemons.gateway.tenants.addresses import group_of
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.limiter import Elsewhere, Limiter, Reservation
from daemons.gateway.tenants.ring import Tenant

log = structlog.get_logger()


class StoreLost(Exception):
    """Who decides with us does not answer."""


class Store(Elsewhere, Protocol):
    """Somebody who counts for several gateways, or for two workers of one."""

    async def reserve(self, reservation: Reservation, bounds: Bounds) -> None:
        """Take a request that fits the limits here.

        Raises:
            Refused: it does not fit there.
            StoreLost: there is no answer.
        """


class Limits:
    """The stage that reserves.

    Attributes:
        limiter: what is counted here.
        store: who else has to agree; None where this process decides alone.
        alone: requests let in by the limits here alone, because the store did not answer.
    """

    def __init__(self, limiter: Limiter, refused: Counter) -> None:
        """`refused` counts by key and limit."""
        self.limiter = limiter
        self.store: Store | None = None
        self.alone = 0
        self._refused = refused

    def reserve(self, tenant: Tenant, client: str, prompt: int, most: int | None) -> Reservation:
        """Take a request out of the limits of its key and its client's address.

        Args:
            tenant: whose request.
            client: its address, as far as it is known.
            prompt: tokens of the prompt, estimated.
            most: tokens that the answer may have; None is as many as the model makes.

        Raises:
            ApiError: a limit is reached; nothing was taken.
        """
        limiter = self.limiter
        tokens = prompt + limiter.expected(tenant.alias, most)
        address = group_of(client) if limiter.limits_addresses else ""
        try:
            return limiter.reserve(tenant.alias, tenant.limits, address, tokens)
        except Refused as refused:
            if self.store is not None:
                # More may be used than is known here.
                refused.left = None
            raise self._refusal(tenant, refused, prompt, tokens - prompt) from None

    async def agree(self, reservation: Reservation, tenant: Tenant) -> None:
        """Have a `store` agree to a reservation.

        Raises:
            ApiError: a limit is reached there; the reservation has to be cancelled.
        """
        try:
            await self.share(reservation, tenant.limits)
        except Refused as refused:
            raise self._refusal(tenant, refused) from None

    async def share(self, reservation: Reservation, bounds: Bounds) -> None:
        """Have a `store` agree to a reservation; where it does not answer, the limits here hold.

        Raises:
            Refused: a limit is reached there; the reservation has to be cancelled.
        """
        store = self.store
        if store is None:
            return
        # Before it is asked: the request may be given up while it thinks.
        reservation.elsewhere = (*reservation.elsewhere, store)
        try:
            await store.reserve(reservation, bounds)
        except StoreLost:
            self.alone += 1

    def fields(self, tenant: Tenant) -> bytes:
        """Header lines that tell where the key stands; empty for one without limits a minute."""
        account = self.limiter.keys.get(tenant.alias)
        return tenant.rate_lines.tell(account, self.limiter.monotonic()) if account is not None else b""

    def remaining(self, tenant: Tenant) -> dict[str, int]:
        """What is left of a key's budgets, by the names of its limits; empty where others count too."""
        if self.store is not None:
            return {}
        account, at = self.limiter.keys.get(tenant.alias), self.limiter.periods()
        day, month = (account.days.of(at.day), account.months.of(at.month)) if account is not None else (0, 0)
        budgets = (
            ("tokens_per_day", tenant.limits.tokens_per_day, day),
            ("tokens_per_month", tenant.limits.tokens_per_month, month),
        )
        return {name: max(0, limit - used) for name, limit, used in budgets if limit is not None}

    def _refusal(self, tenant: Tenant, refused: Refused, prompt: int = 0, answer: int = 0) -> ApiError:
        self._refused.add((tenant.alias, f"{refused.subject}_{refused.dimension}"))
        return refusal(refused, self.fields(tenant), prompt, answer)


_WORDS = {
    "requests": "{whose} may send {limit} request{s} a minute",
    "tokens": "{whose} may use {limit} token{s} a minute",
    "concurrency": "{whose} may have {limit} request{s} in flight",
    "day": "{whose} may use {limit} token{s} a day",
    "month": "{whose} may use {limit} token{s} a month",
}
_WHOSE = {"key": "This API key", "address": "Your network address"}


def refusal(refused: Refused, fields: bytes, prompt: int, answer: int) -> ApiError:
    """The answer to a request over a limit.

    ``x-should-retry: false`` keeps the official SDKs from trying again where seconds do not help.

    Args:
        refused: which limit.
        fields: header lines that tell where the key stands.
        prompt: tokens to be reserved for the prompt.
        answer: tokens to be reserved for the answer.
    """
    wait = max(1, math.ceil(refused.wait))
    headers = dict(line.split(": ", 1) for line in fields.decode().splitlines())
    headers["Retry-After"] = str(wait)
    if refused.dimension in {"day", "month"}:
        headers["x-should-retry"] = "false"
        code, again = ErrorCode.BUDGET_EXCEEDED, f"the budget is renewed in {_duration(wait)}"
    else:
        code, again = ErrorCode.RATE_LIMIT_EXCEEDED, f"try again in {wait} s"
    limit, left = refused.limit, refused.left
    rule = _WORDS[refused.dimension].format(whose=_WHOSE[refused.subject], limit=limit, s=_plural(limit))
    if left is None:
        return ApiError(code, f"{rule}, and this request would be more; {again}.", headers=headers)
    message = (
        f"{rule} and has {left} left, but this request reserves {prompt + answer} "
        f"({prompt} for its prompt, by estimate, and {answer} for its answer); {again}."
    )
    room = left - prompt
    if room > 0:
        message += f" With an answer of at most {room} token{_plural(room)} (max_tokens) it would fit now."
    return ApiError(code, message, headers=headers)


def _plural(count: int) -> str:
    return "" if count == 1 else "s"


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours // 24} days" if hours >= 48 else f"{hours} h {minutes} min"
