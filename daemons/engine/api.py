"""vLLM's HTTP API on its unix socket, as the supervisor uses it."""

import json
from collections.abc import Callable
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
    """A client of one engine. One connection a request, since a pooled one may belong to a dead engine.

    Args:
        socket: of vLLM's API.
        used: called with the prompt and completion tokens of every answer that tells them.
    """

    def __init__(self, socket: Path, used: Callable[[int, int], None] | None = None) -> None:
        self._socket = str(socket)
        self._used = used

    async def get(self, path: str, within: float) -> Answer:
        """GET `path`; raises `EngineUnreachable` or `EngineSilent` (after `within` seconds)."""
        return await self._ask("GET", path, None, within)

    async def post(self, path: str, body: dict[str, Any], within: float) -> Answer:
        """POST `body` as JSON; raises `EngineUnreachable` or `EngineSilent` (after `within` seconds)."""
        answer = await self._ask("POST", path, body, within)
        if self._used is not None and answer.status == 200:
            self._used(*usage_of(answer.body))
        return answer

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


def usage_of(body: str) -> tuple[int, int]:
    """Prompt and completion tokens in the ``usage`` of an answer; nothing where it tells none."""
    try:
        usage = json.loads(body)["usage"]
        return int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0, 0
