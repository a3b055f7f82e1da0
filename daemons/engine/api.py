"""vLLM's HTTP API on its unix socket, as the supervisor uses it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

_BASE = "http://engine"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer.

    Attributes:
        status: HTTP status code.
        body: the body as text.
    """

    status: int
    body: str


class EngineUnreachable(Exception):
    """The engine refuses connections, or broke one off: nobody serves there."""


class EngineSilent(Exception):
    """The engine took the request and gave no answer in time: it is busy or it hangs."""


class EngineApi:
    """A client of one engine. One connection a request, since a pooled one may belong to a dead engine."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    async def get(self, path: str, within: float) -> Answer:
        """GET `path`; raises `EngineUnreachable` or `EngineSilent` (after `within` seconds)."""
        return await self._ask("GET", path, None, within)

    async def post(self, path: str, body: dict[str, Any], within: float) -> Answer:
        """POST `body` as JSON; raises `EngineUnreachable` or `EngineSilent` (after `within` seconds)."""
        return await self._ask("POST", path, body, within)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None, within: float) -> Answer:
        connector = aiohttp.UnixConnector(self._socket, force_close=True)
        limit = aiohttp.ClientTimeout(total=within)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=limit) as session,
                session.request(method, _BASE + path, json=body) as response,
            ):
                return Answer(response.status, await response.text(errors="replace"))
        except TimeoutError:
            raise EngineSilent(f"no answer to {method} {path} in {within:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnreachable(f"{method} {path}: {error}") from None
