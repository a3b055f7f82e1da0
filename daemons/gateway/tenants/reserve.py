"""What a request may use: reserved before it goes anywhere, settled after its end."""

import math

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.metrics import Counter
from daemons.gateway.tenants.addresses import group_of
from daemons.gateway.tenants.keys import Tenant
from daemons.gateway.tenants.limiter import Limiter, Refused, Reservation


class Limits:
    """The stage that reserves."""

    def __init__(self, limiter: Limiter, refused: Counter) -> None:
        """`refused` counts by key and limit."""
        self._limiter = limiter
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
        limiter = self._limiter
        tokens = prompt + limiter.expected(tenant.alias, most)
        address = group_of(client) if limiter.limits_addresses else ""
        try:
            return limiter.reserve(tenant.alias, tenant.limits, address, tokens)
        except Refused as refused:
            raise self._refusal(tenant, refused) from None

    def fields(self, tenant: Tenant) -> bytes:
        """Header lines that tell where the key stands; empty for one without limits a minute."""
        account = self._limiter.keys.get(tenant.alias)
        if account is None:
            return b""
        lines = b""
        now = self._limiter.monotonic()
        limit = tenant.limits.requests_per_minute
        if limit is not None:
            window = account.requests
            lines = _REQUESTS % (limit, max(0, limit - window.total), math.ceil(window.reset(now)))
        limit = tenant.limits.tokens_per_minute
        if limit is not None:
            window = account.tokens
            lines += _TOKENS % (limit, max(0, limit - window.total), math.ceil(window.reset(now)))
        return lines

    def _refusal(self, tenant: Tenant, refused: Refused) -> ApiError:
        self._refused.add((tenant.alias, f"{refused.subject}_{refused.dimension}"))
        return refusal(refused, self.fields(tenant))


_REQUESTS = (
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\n"
    b"x-ratelimit-reset-requests: %ds\r\n"
)
_TOKENS = (
    b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\nx-ratelimit-reset-tokens: %ds\r\n"
)

_WORDS = {
    "requests": "{whose} may send {limit} requests a minute",
    "tokens": "{whose} may use {limit} tokens a minute",
    "concurrency": "{whose} may have {limit} requests in flight",
    "day": "{whose} may use {limit} tokens a day",
    "month": "{whose} may use {limit} tokens a month",
}
_WHOSE = {"key": "This API key", "address": "Your network address"}


def refusal(refused: Refused, fields: bytes) -> ApiError:
    """The answer to a request over a limit; `fields` are header lines that tell where the key stands.

    ``x-should-retry: false`` keeps the official SDKs from trying again where seconds do not help.
    """
    wait = max(1, math.ceil(refused.wait))
    rule = _WORDS[refused.dimension].format(whose=_WHOSE[refused.subject], limit=refused.limit)
    headers = dict(line.split(": ", 1) for line in fields.decode().splitlines())
    headers["Retry-After"] = str(wait)
    if refused.dimension in {"day", "month"}:
        headers["x-should-retry"] = "false"
        return ApiError(
            ErrorCode.BUDGET_EXCEEDED,
            f"{rule}, and this request would be more; the budget is renewed in {_duration(wait)}.",
            headers=headers,
        )
    return ApiError(
        ErrorCode.RATE_LIMIT_EXCEEDED,
        f"{rule}, and this request would be more; try again in {wait} s.",
        headers=headers,
    )


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours // 24} days" if hours >= 48 else f"{hours} h {minutes} min"
