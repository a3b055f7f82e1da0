"""The ``x-ratelimit-*`` header lines, which tell a client where its key stands."""

from daemons.gateway.tenants.accounts import Account
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.windows import RENEWED_SECONDS

_LINES = "x-ratelimit-limit-{0}: {1}\r\nx-ratelimit-remaining-{0}: %d\r\nx-ratelimit-reset-{0}: {2}s\r\n"


class RateLines:
    """The lines of one key, laid out once.

    Args:
        bounds: of the key.
    """

    __slots__ = ("_fresh", "_layout", "_requests", "_tokens")

    def __init__(self, bounds: Bounds) -> None:
        self._requests, self._tokens = bounds.requests_per_minute, bounds.tokens_per_minute
        self._layout = self._laid_out("%d")
        self._fresh = self._laid_out(RENEWED_SECONDS)

    def _laid_out(self, reset: int | str) -> bytes:
        limits = (("requests", self._requests), ("tokens", self._tokens))
        return "".join(_LINES.format(name, limit, reset) for name, limit in limits if limit).encode()

    def tell(self, account: Account, now: float) -> bytes:
        """The lines at a monotonic time, of the key's `account`; empty for a key without limits a minute."""
        most_requests, most_tokens = self._requests, self._tokens
        if most_requests and most_tokens:
            requests, tokens = account.requests, account.tokens
            if now < requests.busy_until and now < tokens.busy_until:
                # In nearly every answer, since its own request was let in just now.
                left = most_requests - requests.total, most_tokens - tokens.total
                if left[0] >= 0 and left[1] >= 0:
                    return self._fresh % left
        standing: tuple[int, ...] = ()
        if most_requests:
            standing = account.requests.standing(most_requests, now)
        if most_tokens:
            standing += account.tokens.standing(most_tokens, now)
        return self._layout % standing
