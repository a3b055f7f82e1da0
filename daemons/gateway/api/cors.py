"""Cross-origin requests from browsers; nothing is allowed that is not configured."""

import re

from aiohttp import hdrs, web
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDictProxy

from daemons.gateway.settings import CorsSettings

_METHODS = "GET, POST"
_LIMITS = ", ".join(
    f"x-ratelimit-{figure}-{of}"
    for of in ("requests", "tokens")
    for figure in ("limit", "remaining", "reset")
)
_EXPOSED = f"X-Request-Id, request-id, Retry-After, x-should-retry, {_LIMITS}"
_HEADERS = "Authorization, Content-Type, X-API-Key, X-Request-Id, anthropic-version, anthropic-beta"
# SDKs in browsers send a dozen headers of their own, and new ones with every release.
_ASKED = re.compile(r"[A-Za-z0-9_-]+(?:, ?[A-Za-z0-9_-]+){0,63}")


class Cors:
    """Answers preflights and says which origin may read an answer.

    Attributes:
        allows: whether any origin may.
    """

    def __init__(self, settings: CorsSettings) -> None:
        self._origins = frozenset(settings.allowed_origins)
        self.allows = bool(self._origins)
        self._max_age = str(settings.max_age)

    def lines(self, headers: CIMultiDictProxy[str]) -> dict[str, str]:
        """Header lines for the answer to a request; none for an origin that is not allowed."""
        if not self.allows:
            return {}
        origin = headers.get(hdrs.ORIGIN)
        if origin is None or not ({origin, "*"} & self._origins):
            return {}
        return {
            "Access-Control-Allow-Origin": "*" if "*" in self._origins else origin,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }

    def preflight(self, request: BaseRequest) -> web.Response | None:
        """The answer to a preflight; None when `request` is none that is answered."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        lines = self.lines(request.headers)
        if not lines:
            return None
        lines["Access-Control-Allow-Methods"] = _METHODS
        asked = request.headers.get("Access-Control-Request-Headers", "")
        lines["Access-Control-Allow-Headers"] = asked if _ASKED.fullmatch(asked) else _HEADERS
        lines["Access-Control-Max-Age"] = self._max_age
        return web.Response(status=204, headers=lines)
