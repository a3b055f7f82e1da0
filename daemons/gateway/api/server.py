"""The HTTP server: aiohttp keeps the connections and parses requests, the relay writes the answers."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Awaitable, Callable
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

import structlog
from aiohttp import web
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo
from aiohttp.web_request import BaseRequest

from daemons.gateway.api.accept import request_id
from daemons.gateway.api.arrival import Arrival
from daemons.gateway.api.forms import openai_body
from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.relay.relay import Relay
from daemons.gateway.settings import LimitSettings, Timeouts

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

log = structlog.get_logger()

_OWN_FILES = 96
"""Files that the process has open besides clients' and engines' connections; generous."""
_LOOKED_AT = 256
"""Old connections that are looked at for one that is idle."""
SERVER = "llm-gateway"
"""What ``Server`` says: neither a version nor what it is made of."""
_IDLE_SECONDS = 2.0

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]


class Service(Protocol):
    """What requests are for."""

    def serve(self, arrival: Arrival) -> Awaitable[bool]:
        """Serve a request; whether another may follow on its connection.

        Raises:
            ApiError: it is refused, and nothing was sent; from the returned awaitable.
        """

    def refuse(self, arrival: Arrival, error: ApiError) -> web.StreamResponse:
        """The answer to a request that `serve` has ended with `error`."""

    async def __call__(self, request: BaseRequest) -> web.StreamResponse:
        """Answer what `serve` left to aiohttp."""

    def not_http(self, error: ApiError) -> None:
        """Something came that is no request."""


class ClientConnection(RequestHandler):
    """A client's connection.

    Attributes:
        peer: address of the other end; None on a unix socket.
        relay: the answer being written, which follows this connection's backpressure.
        paused_at: time since which the client does not read; 0 while it does.
        busy: a request is being served.
        used_at: time at which the last one ended, or the connection began.
    """

    __slots__ = ("_server", "busy", "paused_at", "peer", "relay", "used_at")

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
        self.peer: str | None = None
        self.relay: Relay | None = None
        self.paused_at = 0.0
        self.busy = False
        self.used_at = monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = _address(self.peername)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # Covers what the kernel still holds for a client that vanished after its answer was written.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._server.user_timeout_ms)

        self._server.opened(self)

    async def start(self) -> None:
        """Serve one request after the other, as `RequestHandler` does, but without a task for each."""
        try:
            while not (self._force_close or self._close):
                if not self._messages:
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                arrival, serving = self._take()
                self.busy = True
                try:
                    keep = await serving
                except Exception as error:  # noqa: BLE001 - a bug, too, is told to its client
                    keep = await self._explain(arrival, error)
                finally:
                    self.busy = False
                    self.used_at = now = monotonic()
                if not keep:
                    break
                # A connection may be idle for long, and keeps nothing of its last request.
                del arrival, serving
                self._next_keepalive_close_time = now + self._keepalive_timeout
                if self._keepalive_handle is None:
                    self._watch_keepalive()
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception:
            self.force_close()
            log.exception("unhandled error")
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    def _take(self) -> tuple[Arrival, Awaitable[bool]]:
        """The next message, and what serves it and says whether another may follow."""
        message, content = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        if isinstance(message, _ErrInfo):
            arrival = Arrival(self, ERROR, content)
            return arrival, self.handle(arrival, self._make_error_handler(message))
        arrival = Arrival(self, message, content)
        return arrival, self._server.service.serve(arrival)

    def _watch_keepalive(self) -> None:
        if not self._force_close:
            ends = self._next_keepalive_close_time
            self._keepalive_handle = self._loop.call_at(ends, self._process_keepalive)

    async def _explain(self, arrival: Arrival, error: Exception) -> bool:
        """Answer a request that was not served; whether another may follow."""
        if isinstance(error, ConnectionError):
            return False
        if isinstance(error, ApiError):
            return await self.respond(arrival, self._server.service.refuse(arrival, error))
        path, _, _ = arrival.message.path.partition("?")
        log.error("unhandled error", exc_info=error, path=path, request_id=arrival.request_id)
        answer = self._server.service.refuse(arrival, _bug())
        answer.force_close()
        return await self.respond(arrival, answer)

    async def handle(self, arrival: Arrival, handler: Handler) -> bool:
        """Have `handler` answer a request; whether another may follow."""
        answer, lost = await self._handle_request(self._request(arrival), None, handler)
        return await self._finish(arrival, answer, lost=lost)

    async def respond(self, arrival: Arrival, answer: web.StreamResponse) -> bool:
        """Answer a request; whether another may follow."""
        _, lost = await self.finish_response(self._request(arrival), answer, None)
        return await self._finish(arrival, answer, lost=lost)

    def _request(self, arrival: Arrival) -> BaseRequest:
        writer = StreamWriter(self, self._loop)
        task = self._task_handler or asyncio.current_task()
        assert task is not None  # noqa: S101 - called within the connection's own
        head = cast("RawRequestMessage", arrival.message)
        return BaseRequest(head, arrival.content, self, writer, task, self._loop)

    async def _finish(self, arrival: Arrival, answer: web.StreamResponse, *, lost: bool) -> bool:
        """Read what a client still sends after its answer, so that it comes to read that."""
        content = arrival.content
        if not (lost or content.is_eof() or self._force_close):
            with contextlib.suppress(TimeoutError, web.RequestPayloadError):
                async with asyncio.timeout(self._lingering_time):
                    while not content.is_eof():
                        await content.readany()
        return bool(answer.keep_alive) and not lost and content.is_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.alive.pop(self, None)
        self._server.paused.discard(self)
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.abandon()
        super().connection_lost(exc)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Every body that is read asks for it; where nothing was paused, nothing waits inside the parser.
        if self._reading_paused:
            super().resume_reading(resume_parser)

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
        """What is not HTTP, and what is a bug of ours elsewhere, in the form every other error has."""
        name = request_id(request.headers)
        if status == 400:
            error = _not_http(exc, message or "malformed request")
        else:
            log.error("unhandled error", exc_info=exc, path=request.path, request_id=name)
            error = _bug()
        self._server.service.not_http(error)
        answer = web.Response(status=error.status, body=openai_body(error), content_type="application/json")
        answer.headers["X-Request-Id"] = name
        answer.headers["Server"] = SERVER
        answer.force_close()
        return answer


def _address(peername: object) -> str | None:
    if peername is None:
        return None
    return str(peername[0] if isinstance(peername, tuple | list) else peername)


def _most_connections() -> int:
    """How many clients may be connected so that each can have an engine's connection too."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, (files - _OWN_FILES) // 2)


def _bug() -> ApiError:
    return ApiError(ErrorCode.INTERNAL_ERROR, "An unexpected error; the operator finds it in the log.")


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
        service: what requests are for.
        user_timeout_ms: ``TCP_USER_TIMEOUT`` of client connections.
    """

    def __init__(self, service: Service, limits: LimitSettings, timeouts: Timeouts) -> None:
        super().__init__(service, handler_cancellation=True)
        self.service = service
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
