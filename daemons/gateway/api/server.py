"""The HTTP server: aiohttp keeps the connections and parses requests, the relay writes the answers."""

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable
from itertools import islice
from time import monotonic

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from daemons.gateway.api.accept import new_id
from daemons.gateway.api.forms import openai_body
from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.relay.relay import Relay
from daemons.gateway.settings import LimitSettings, Timeouts

log = structlog.get_logger()

_OWN_FILES = 96
"""Files that the process has open besides clients' and engines' connections; generous."""
_LOOKED_AT = 256
"""Old connections that are looked at for one that is idle."""
SERVER = "llm-gateway"
"""What ``Server`` says: neither a version nor what it is made of."""
_IDLE_SECONDS = 2.0

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]


class Written(web.StreamResponse):
    """Stands for an answer that the relay has already written to the transport."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._reusable = keep_alive

    @property
    def keep_alive(self) -> bool | None:
        return self._reusable

    async def prepare(self, request: BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class ClientConnection(RequestHandler):
    """A client's connection.

    Attributes:
        relay: the answer being written, which follows this connection's backpressure.
        paused_at: time since which the client does not read; 0 while it does.
        busy: a request is being served.
        used_at: time at which the last one ended, or the connection began.
    """

    __slots__ = ("_server", "busy", "paused_at", "relay", "used_at")

    def __init__(self, server: "GatewayServer", loop: asyncio.AbstractEventLoop) -> None:
        limits = server.limits
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None turns it off
            auto_decompress=False,
            keepalive_timeout=server.idle_seconds,
            lingering_time=2.0,
            max_field_size=limits.header_bytes,
            max_line_size=limits.header_bytes,
            max_headers=limits.header_count,
        )
        self._server = server
        self.relay: Relay | None = None
        self.paused_at = 0.0
        self.busy = False
        self.used_at = monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # Covers what the kernel still holds for a client that vanished after its answer was written.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._server.user_timeout_ms)

        self._server.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.alive.pop(self, None)
        self._server.paused.discard(self)
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.abandon()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused_at = monotonic()
        self._server.paused.add(self)
        if self.relay is not None:
            self.relay.client_paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.paused_at = 0.0
        self._server.paused.discard(self)
        if self.relay is not None:
            self.relay.client_resumed()

    def drop(self) -> None:
        """Cut the connection, whatever is still unsent."""
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is not HTTP, and what is a bug here, in the form every other error has."""
        if status == 400:
            error = _not_http(exc, message or "malformed request")
        else:
            log.error("unhandled error", exc_info=exc, path=request.path)
            error = ApiError(
                ErrorCode.INTERNAL_ERROR, "An unexpected error; the operator finds it in the log."
            )
        self._server.refused(error)
        answer = web.Response(status=error.status, body=openai_body(error), content_type="application/json")
        answer.headers["X-Request-Id"] = new_id()
        answer.headers["Server"] = SERVER
        answer.force_close()
        return answer


def _most_connections() -> int:
    """How many clients may be connected so that each can have an engine's connection too."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, (files - _OWN_FILES) // 2)


def _not_http(error: BaseException | None, reason: str) -> ApiError:
    if isinstance(error, LineTooLong) or reason.startswith("Too many headers"):
        return ApiError(ErrorCode.HEADERS_TOO_LARGE, "The request has too many or too long header lines.")
    # After the first line aiohttp quotes what it could not read, which may be somebody's key.
    reason = reason.partition("\n")[0].rstrip(" :.")[:100]
    return ApiError(ErrorCode.INVALID_HTTP, f"Not a valid HTTP/1.1 request: {reason}.")


class GatewayServer(web.Server):
    """Makes a `ClientConnection` for each connection.

    Attributes:
        paused: connections whose client does not read.
        alive: all connections, in the order in which they came.
        limits: bounds on what clients send.
        idle_seconds: how long a connection may stay without a request.
        refused: told of what never became a request.
        user_timeout_ms: ``TCP_USER_TIMEOUT`` of client connections.
    """

    def __init__(
        self, handler: Handler, limits: LimitSettings, timeouts: Timeouts, refused: Callable[[ApiError], None]
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.refused = refused
        self._loop = asyncio.get_running_loop()
        self.limits = limits
        self.idle_seconds = timeouts.idle_connection
        self.paused: set[ClientConnection] = set()
        self.alive: dict[ClientConnection, None] = {}
        self._most = _most_connections()
        self._stalled_after = timeouts.stalled_reader
        self.user_timeout_ms = int(1000 * (timeouts.stalled_reader + 30))

    def __call__(self) -> ClientConnection:
        return ClientConnection(self, self._loop)

    def opened(self, connection: ClientConnection) -> None:
        """Take a new connection, in place of an idle one where there are too many."""
        self.alive[connection] = None
        if len(self.alive) <= self._most:
            return
        oldest = (other for other in islice(self.alive, _LOOKED_AT) if not other.busy)
        leaves = next(oldest, connection)
        del self.alive[leaves]
        leaves.drop()

    def close_idle(self, now: float) -> bool:
        """While draining: close what has been idle for a while; whether no connection is left.

        A client in the midst of its requests is told with its next answer: a connection closed under a
        request that is on its way would be a refusal.
        """
        for connection in self.connections:
            if not isinstance(connection, ClientConnection) or connection.busy:
                continue
            if now - connection.used_at > _IDLE_SECONDS:
                connection.force_close()
        return not self.connections

    def drop_stalled(self, now: float) -> list[Relay]:
        """Cut the connections of clients that have not read for too long; the answers cut off."""
        cut: list[Relay] = []
        for connection in [c for c in self.paused if now - c.paused_at > self._stalled_after]:
            if connection.relay is not None:
                cut.append(connection.relay)
                connection.relay.fail(ErrorCode.CLIENT_STALLED, "")
            connection.drop()
        return cut
