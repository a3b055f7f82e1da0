"""The application: routes, the key check, error bodies, the count of requests."""

import hmac
import time
import uuid
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from daemons.simulator.http import errors
from daemons.simulator.http.chat import Chat
from daemons.simulator.http.completions import Completions
from daemons.simulator.http.faults import FaultAdmin
from daemons.simulator.http.messages import Messages
from daemons.simulator.http.plain import Plain
from daemons.simulator.http.responses import Responses
from daemons.simulator.http.service import Service
from daemons.simulator.metrics.exposition import CONTENT_TYPE, MetricsPage
from daemons.simulator.metrics.http_server import UNCOUNTED

_MAX_BODY = 256 * 2**20
_ANTHROPIC = "/v1/messages"


def build(
    service: Service, page: MetricsPage, keys: Sequence[str], *, pooling: bool, fault_admin: bool
) -> web.Application:
    """The application; `keys` empty asks for none, `pooling` serves embeddings instead of text."""
    app = web.Application(
        client_max_size=_MAX_BODY,
        middlewares=[_counting(page), _identifying(service), _answering_errors, _checking(keys)],
    )
    app.on_response_prepare.append(_sign)
    plain, chat, completions, messages = (
        Plain(service),
        Chat(service),
        Completions(service),
        Messages(service),
    )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=page.render(), headers={"Content-Type": CONTENT_TYPE})

    _add_get(app, {"/health": plain.health, "/ping": plain.health, "/version": plain.version})
    _add_get(app, {"/load": plain.load, "/v1/models": plain.models, "/metrics": metrics})
    app.router.add_post("/ping", plain.health)
    app.router.add_post("/tokenize", plain.tokenize)
    app.router.add_post("/detokenize", plain.detokenize)
    if pooling:
        app.router.add_post("/v1/embeddings", plain.embeddings)
    else:
        app.router.add_post("/v1/chat/completions", chat.handle)
        app.router.add_post("/invocations", chat.handle)
        app.router.add_post("/v1/completions", completions.handle)
        app.router.add_post("/v1/messages", messages.handle)
        app.router.add_post("/v1/messages/count_tokens", messages.count)
        app.router.add_post("/v1/responses", Responses(service).handle)
    if fault_admin:
        admin = FaultAdmin(service)
        app.router.add_get("/sim/faults", admin.show, allow_head=False)
        app.router.add_post("/sim/faults", admin.set)
        app.router.add_delete("/sim/faults", admin.clear)
    return app


def _add_get(app: web.Application, routes: dict[str, Handler]) -> None:
    for path, handler in routes.items():
        app.router.add_get(path, handler, allow_head=path == "/metrics")


async def _sign(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "llm-simulator"
    response.headers["Vary"] = "Origin"


def _counting(page: MetricsPage) -> Middleware:
    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        begun = time.perf_counter()
        response = await handler(request)
        resource = request.match_info.route.resource
        name = resource.canonical if resource else "none"
        if name not in UNCOUNTED:
            sizes = (request.content_length or 0, response.content_length or 0)
            page.http.count(name, request.method, response.status, sizes, time.perf_counter() - begun)
        return response

    return count


def _identifying(service: Service) -> Middleware:
    @web.middleware
    async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if service.identity.request_ids and not response.prepared:
            response.headers["X-Request-Id"] = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        return response

    return identify


@web.middleware
async def _answering_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except errors.ApiError as error:
        return errors.response(error, anthropic=request.path.startswith(_ANTHROPIC))
    except web.HTTPMethodNotAllowed as error:
        body = {"detail": "Method Not Allowed"}
        allowed = ", ".join(sorted(error.allowed_methods))
        return errors.reply(body, status=405, headers={"Allow": allowed})
    except web.HTTPNotFound:
        return errors.reply({"detail": "Not Found"}, status=404)


def _checking(keys: Sequence[str]) -> Middleware:
    known = [key.encode() for key in keys]

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if known and request.path.startswith("/v1"):
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            matches = [hmac.compare_digest(given.encode(), key) for key in known]
            if scheme.lower() != "bearer" or not any(matches):
                return errors.reply({"error": "Unauthorized"}, status=401)
        return await handler(request)

    return check
