"""What the gateway answers by itself: models, health, readiness."""

import asyncio
import datetime as dt
import time
from time import monotonic

import msgspec
from aiohttp import web
from aiohttp.web_request import BaseRequest

from daemons.gateway.api.inference import allowed, no_model
from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.pool.pool import Pool
from daemons.gateway.tenants.authenticate import Authenticator


def json_response(value: object, status: int = 200) -> web.Response:
    """`value` as a JSON response."""
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


class Info:
    """The small endpoints."""

    def __init__(self, pool: Pool, authenticate: Authenticator, ready_wait: float) -> None:
        self._pool = pool
        self._authenticate = authenticate
        self._ready_wait = ready_wait
        self._changed = asyncio.Event()
        self._since = int(time.time())

    def engines_changed(self) -> None:
        """An engine's state is another one."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def models(self, request: BaseRequest) -> web.StreamResponse:
        """``GET /v1/models``: what this key may use and an engine is there for."""
        tenant, _ = self._authenticate(request.headers, request.remote)
        names = [model for model in self._pool.models if allowed(tenant, model)]
        page = {
            "has_more": False,
            "first_id": names[0] if names else None,
            "last_id": names[-1] if names else None,
        }
        return json_response({"object": "list", "data": [self._shown(name) for name in names], **page})

    async def model(self, request: BaseRequest, name: str) -> web.StreamResponse:
        """``GET /v1/models/NAME``.

        Raises:
            ApiError: there is no such model for this key.
        """
        tenant, _ = self._authenticate(request.headers, request.remote)
        if name not in self._pool.models or not allowed(tenant, name):
            raise no_model(name)
        return json_response(self._shown(name))

    def _shown(self, model: str) -> dict[str, object]:
        """A model as both OpenAI's and Anthropic's clients read it."""
        return {
            "id": model,
            "object": "model",
            "created": self._since,
            "owned_by": "llm",
            "ready": self._pool.lives(model, monotonic()),
            "type": "model",
            "display_name": model,
            "created_at": dt.datetime.fromtimestamp(self._since, dt.UTC).isoformat().replace("+00:00", "Z"),
        }

    async def health(self, _: BaseRequest) -> web.StreamResponse:
        """``GET /health``: the process answers."""
        return json_response({"status": "ok"})

    async def ready(self, request: BaseRequest) -> web.StreamResponse:
        """``GET /ready``: waits until an engine would take a request; ``?wait=0`` does not wait.

        Raises:
            ApiError: none would, for as long as was waited.
        """
        ends = monotonic() + self._wait(request)
        while not self._pool.ready(monotonic()):
            left = ends - monotonic()
            if left <= 0:
                raise ApiError(
                    ErrorCode.NO_ENGINE,
                    f"No engine is ready ({self._pool.describe(monotonic())}).",
                    headers={"Retry-After": "5"},
                )
            changed = self._changed
            try:
                # Places come free without a change of state, hence no longer than a second at once.
                async with asyncio.timeout(min(left, 1.0)):
                    await changed.wait()
            except TimeoutError:
                continue
        return json_response({"status": "ready"})

    def _wait(self, request: BaseRequest) -> float:
        given = request.rel_url.query.get("wait")
        if given is None:
            return self._ready_wait
        try:
            wait = float(given)
        except ValueError:
            wait = -1.0
        if not 0 <= wait < float("inf"):
            raise ApiError(
                ErrorCode.INVALID_REQUEST, "'wait' must be a number of seconds, 0 or more.", param="wait"
            )
        return min(wait, self._ready_wait)
