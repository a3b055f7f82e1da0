"""From a path to what serves it; every refusal in the form of the API that was asked."""

from collections.abc import Awaitable, Callable
from time import monotonic

from aiohttp import web
from aiohttp.web_request import BaseRequest

from daemons.gateway.api.accept import request_id
from daemons.gateway.api.cors import Cors
from daemons.gateway.api.endpoints import ENDPOINTS
from daemons.gateway.api.forms import OPENAI, Form
from daemons.gateway.api.inference import Inference
from daemons.gateway.api.info import Info
from daemons.gateway.api.server import ClientConnection
from daemons.gateway.api.usage import Usage
from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.metrics import Metrics

_GOOD = ("200",)

Simple = Callable[[BaseRequest], Awaitable[web.StreamResponse]]


class Dispatch:
    """The handler of the HTTP server."""

    def __init__(self, inference: Inference, info: Info, usage: Usage, cors: Cors, metrics: Metrics) -> None:
        self._inference = inference
        self._info = info
        self._cors = cors
        self._metrics = metrics
        self._simple: dict[str, Simple] = {
            "/health": info.health,
            "/ready": info.ready,
            "/v1/models": info.models,
            "/v1/usage": usage,
        }

    async def __call__(self, request: BaseRequest) -> web.StreamResponse:
        """Serve `request`."""
        client = request.protocol
        assert isinstance(client, ClientConnection)  # noqa: S101 - made by our own server
        client.busy = True
        try:
            return await self._serve(request)
        finally:
            client.busy = False
            client.used_at = monotonic()

    async def _serve(self, request: BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        name = request_id(request.headers)
        endpoint = ENDPOINTS.get(path)
        form = endpoint.form if endpoint else OPENAI
        try:
            if endpoint is not None:
                if request.method == "POST":
                    answer = await self._inference(request, endpoint, name)
                    self._metrics.http_responses.add(_GOOD)
                    return answer
                preflight = self._cors.preflight(request)
                if preflight is not None:
                    return preflight
                raise _method("POST", request.method)
            answer = await self._other(request, path)
        except ApiError as error:
            answer = self._refuse(request, error, form)
        if self._inference.draining:
            # Whoever is refused again and again must find the worker that serves now, too.
            answer.force_close()
        answer.headers["X-Request-Id"] = name
        answer.headers.update(self._cors.lines(request))
        self._metrics.http_responses.add((str(answer.status),))
        return answer

    async def _other(self, request: BaseRequest, path: str) -> web.StreamResponse:
        simple = self._simple.get(path)
        if simple is not None:
            _read_only(request)
            return await simple(request)
        if path.startswith("/v1/models/"):
            _read_only(request)
            return await self._info.model(request, request.path.removeprefix("/v1/models/"))
        raise ApiError(ErrorCode.NOT_FOUND, f"There is nothing at {path[:200]}.")

    def _refuse(self, request: BaseRequest, error: ApiError, form: Form) -> web.Response:
        if error.code is ErrorCode.INVALID_API_KEY:
            self._metrics.auth_failures.add((error.code.value,))
        answer = web.Response(
            status=error.status, body=form.body(error), headers=error.headers, content_type="application/json"
        )
        if error.code is ErrorCode.INVALID_HTTP or not request.content.is_eof():
            # What follows might be part of a message that was not understood, or is not worth reading.
            answer.force_close()
        return answer


def _read_only(request: BaseRequest) -> None:
    if request.method not in {"GET", "HEAD"}:
        raise _method("GET, HEAD", request.method)


def _method(allow: str, given: str) -> ApiError:
    return ApiError(
        ErrorCode.METHOD_NOT_ALLOWED,
        f"{given[:32]} is not possible here; try {allow}.",
        headers={"Allow": allow},
    )
