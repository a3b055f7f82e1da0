"""From a path to what serves it; every refusal in the form of the API that was asked."""

from collections.abc import Awaitable, Callable
from time import monotonic

import structlog
from aiohttp import web
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDictProxy

from daemons.gateway.api.accept import check_framing, request_id
from daemons.gateway.api.arrival import Arrival
from daemons.gateway.api.cors import Cors
from daemons.gateway.api.endpoints import ENDPOINTS, Endpoint
from daemons.gateway.api.forms import ANTHROPIC, OPENAI, Form
from daemons.gateway.api.inference import Inference
from daemons.gateway.api.info import Info
from daemons.gateway.api.server import SERVER
from daemons.gateway.api.usage import Usage
from daemons.gateway.errors import ApiError, ErrorCode, StrangerError
from daemons.gateway.metrics import Metrics

log = structlog.get_logger()

_VERSIONS = frozenset({(1, 0), (1, 1)})
_STRANGER_SECONDS = 0.1
"""Between two lines about requests without a valid key; those in between are counted."""

Simple = Callable[[BaseRequest], Awaitable[web.StreamResponse]]


class Dispatch:
    """Serves requests, and is the handler of those that go to no engine."""

    def __init__(self, inference: Inference, info: Info, usage: Usage, cors: Cors, metrics: Metrics) -> None:
        self._inference = inference
        self._info = info
        self._cors = cors
        self._metrics = metrics
        self._strangers = Strangers(metrics)
        self._simple: dict[str, Simple] = {
            "/health": info.health,
            "/ready": info.ready,
            "/v1/models": info.models,
            "/v1/usage": usage,
        }

    def serve(self, arrival: Arrival) -> Awaitable[bool]:
        """Serve a request; whether another may follow on its connection.

        Raises:
            ApiError: it is refused; from the returned awaitable.
        """
        message = arrival.message
        endpoint = _endpoint(message.path)
        if endpoint is None or message.method != "POST" or message.version not in _VERSIONS:
            return arrival.client.handle(arrival, self)
        arrival.request_id = request_id(message.headers)
        return self._inference(arrival, endpoint)

    def refuse(self, arrival: Arrival, error: ApiError) -> web.StreamResponse:
        """The answer to a request that `serve` has ended with `error`."""
        endpoint = _endpoint(arrival.message.path)
        form = endpoint.form if endpoint is not None else OPENAI
        if endpoint is not None and isinstance(error, StrangerError):
            self._strangers(error, arrival.request_id, endpoint.name, arrival.client.peer)
        answer = _refusal(error, form, whole=arrival.content.is_eof())
        return self._signed(answer, arrival.message.headers, arrival.request_id, form)

    async def __call__(self, request: BaseRequest) -> web.StreamResponse:
        """Answer what goes to no engine."""
        path = request.raw_path.partition("?")[0]
        name = request_id(request.headers)
        endpoint = ENDPOINTS.get(path)
        form = _form(request, endpoint)
        answer: web.StreamResponse
        try:
            if request.version not in _VERSIONS:
                raise ApiError(ErrorCode.INVALID_HTTP, "HTTP/1.1 is spoken here.", status=505)
            check_framing(request.headers)
            preflight = self._cors.preflight(request)
            if preflight is not None:
                return self._signed(preflight, request.headers, name, form)
            if endpoint is not None:
                raise _method("POST", request.method)
            answer = await self._other(request, path)
        except ApiError as error:
            answer = _refusal(error, form, whole=request.content.is_eof())
            if isinstance(error, StrangerError):
                self._strangers(error, name, "other", request.remote)
        return self._signed(answer, request.headers, name, form)

    def not_http(self, error: ApiError) -> None:
        """Something came that is no request."""
        self._metrics.http_responses.add((str(error.status),))

    def _signed(
        self, answer: web.StreamResponse, headers: CIMultiDictProxy[str], name: str, form: Form
    ) -> web.StreamResponse:
        """`answer`, with what every one of ours has."""
        if self._inference.draining:
            # Whoever is refused again and again must find the worker that serves now, too.
            answer.force_close()
        answer.headers["X-Request-Id"] = name
        answer.headers["Server"] = SERVER
        if form is ANTHROPIC:
            answer.headers["request-id"] = name
        answer.headers.update(self._cors.lines(headers))
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
        told = f"There is nothing at {path[:200]}."
        if path.startswith("/v1/v1/"):
            told += " Leave the last /v1 out of the base URL: Anthropic's SDKs add it by themselves."
        raise ApiError(ErrorCode.NOT_FOUND, told)


class Strangers:
    """Counts and logs who is turned away unknown; a flood of them must not crowd out the log of others."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged_at = 0.0
        self._unlogged = 0

    def __call__(self, error: ApiError, request_id: str, endpoint: str, peer: str | None) -> None:
        """A request from `peer` was refused."""
        self._metrics.auth_failures.add((error.code.value,))
        now = monotonic()
        if now - self._logged_at < _STRANGER_SECONDS:
            self._unlogged += 1
            return
        log.info(
            "refused",
            request_id=request_id,
            endpoint=endpoint,
            outcome=error.code,
            status=error.status,
            peer=peer,
            unlogged=self._unlogged,
        )
        self._logged_at, self._unlogged = now, 0


def _refusal(error: ApiError, form: Form, *, whole: bool) -> web.Response:
    """The answer to a request that is refused, of which the body has come `whole` or not."""
    answer = web.Response(
        status=error.status, body=form.body(error), headers=error.headers, content_type="application/json"
    )
    if error.code is ErrorCode.INVALID_HTTP or not whole:
        # What follows might be part of a message that was not understood, or is not worth reading.
        answer.force_close()
    return answer


def _endpoint(path: str) -> Endpoint | None:
    return ENDPOINTS.get(path) or ENDPOINTS.get(path.partition("?")[0])


def _form(request: BaseRequest, endpoint: Endpoint | None) -> Form:
    if endpoint is not None:
        return endpoint.form
    return ANTHROPIC if "anthropic-version" in request.headers else OPENAI


def _read_only(request: BaseRequest) -> None:
    if request.method not in {"GET", "HEAD"}:
        raise _method("GET, HEAD", request.method)


def _method(allow: str, given: str) -> ApiError:
    return ApiError(
        ErrorCode.METHOD_NOT_ALLOWED,
        f"{given[:32]} is not possible here; try {allow}.",
        headers={"Allow": allow},
    )
