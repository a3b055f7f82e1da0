"""One answer on its way from an engine to a client.

Everything between the first and the last byte happens in callbacks: what arrives is written to the client's
transport at once, and each side's backpressure pauses the other. The request's coroutine only waits for the
end of an attempt.
"""

import asyncio
from time import monotonic
from typing import Final, Protocol

from daemons.gateway.errors import ErrorCode
from daemons.gateway.relay.http1 import ProtocolError, ResponseHead
from daemons.gateway.relay.sse import UsageScan, usage_in
from daemons.gateway.relay.upstream import EngineConnection
from daemons.gateway.relay.usage import TokenCounts

_COLLECT: Final = 262144
"""An answer up to this size is collected, so that it reaches the client whole or not at all."""
_MAX_ERROR: Final = 65536
_PLAIN_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b%b\r\n"
_WHOLE: Final = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n%b"
_JSON: Final = b"application/json"


class Observer(Protocol):
    """Told of the moments that metrics are made of, in seconds."""

    def first(self, seconds: float, /) -> None:
        """The first piece of the answer came so long after the request went to the engine."""

    def gap(self, seconds: float, /) -> None:
        """Another piece came so long after the one before."""


class Client(Protocol):
    """The client's connection, as the relay sees it."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """Where the answer goes; None once the connection is lost."""


class Patience:
    """How long the relay waits, in seconds of the event loop's clock.

    Attributes:
        first_byte: for the first piece of an answer; None where that piece is the whole answer.
        between_chunks: for each further piece.
        total: for everything.
        keep_alive: silence after which a stream's reader gets a comment.
    """

    __slots__ = ("between_chunks", "first_byte", "keep_alive", "total")

    def __init__(
        self, *, first_byte: float | None, between_chunks: float, total: float, keep_alive: float
    ) -> None:
        self.first_byte = first_byte
        self.between_chunks = between_chunks
        self.total = total
        self.keep_alive = keep_alive


class Relay:
    """Carries an answer in one piece; survives a change of engine while none of it was forwarded.

    Attributes:
        head: head of the latest answer.
        failure: why the latest attempt failed; None while it runs and after success.
        detail: the failure in more words, for the log; never any of the prompt or the answer.
        body: body of an answer that was collected whole, or of one with a status other than 200.
        opened: the response head went to the client.
        answered: part of an answer went to the client, so that no other engine may take over.
        bytes_out: bytes written to the client.
        sent_at: loop time at which the request went to the engine.
        left: the request has left for an engine, which may have worked on it.
        first_at: loop time of the first piece of the answer; 0 before.
        last_at: loop time of the last one.
        paused: the client does not keep up, and the engine is not read.
    """

    __slots__ = (
        "_chunked",
        "_client",
        "_collected",
        "_collected_size",
        "_connection",
        "_done",
        "_fields",
        "_observer",
        "_patience",
        "_refused",
        "_scan",
        "_started",
        "answered",
        "body",
        "bytes_out",
        "detail",
        "failure",
        "first_at",
        "head",
        "last_at",
        "left",
        "opened",
        "paused",
        "sent_at",
    )

    def __init__(
        self,
        client: Client,
        fields: bytes,
        patience: Patience,
        observer: Observer,
        chunked: bool,
    ) -> None:
        """A relay to `client`.

        Args:
            fields: response header lines of ours, each with its CRLF.
            chunked: False for a client of HTTP/1.0, whose answer ends with its connection.
        """
        self._client = client
        self._fields = fields
        self._patience = patience
        self._observer = observer
        self._chunked = chunked
        self._connection: EngineConnection | None = None
        self._done: asyncio.Future[None]
        self._refused: bool
        self._collected: list[bytes]
        self._collected_size: int
        self._scan: UsageScan | None = None
        self._started = monotonic()
        self.head: ResponseHead | None = None
        self.failure: ErrorCode | None = None
        self.detail = ""
        self.body = b""
        self.opened = False
        self.answered = False
        self.left = False
        self.paused = False
        self.bytes_out = 0
        self.sent_at = self.first_at = self.last_at = 0.0

    def begin(self, connection: EngineConnection, request: bytes) -> asyncio.Future[None]:
        """Send `request` over `connection`; the future is done when this attempt has ended, well or not."""
        if self.sent_at or self.failure is not None:
            self._forget_attempt()
        self._connection = connection
        self.sent_at = monotonic()
        self._done = done = asyncio.get_running_loop().create_future()
        connection.send(request, self)
        if self.paused:
            connection.transport.pause_reading()
        return done

    def request_left(self) -> None:
        self.left = True
        self.sent_at = monotonic()

    def _forget_attempt(self) -> None:
        self.head, self.failure, self.detail, self.body = None, None, "", b""
        self.first_at = self.last_at = 0.0

    def fail(self, code: ErrorCode, detail: str) -> None:
        """End the attempt from this side; the engine stops working on it."""
        if self._connection is not None:
            self._connection.abort()
            self._failed(code, detail)

    def abandon(self) -> None:
        """Nobody wants the answer any more; the engine stops working on it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def usage(self) -> TokenCounts | None:
        """Tokens as the engine counted them so far."""
        return self._scan.usage() if self._scan is not None else usage_in(self.body)

    def silence(self, now: float) -> float:
        """Seconds since the engine last said something, or was asked."""
        return now - (self.last_at or self.sent_at) if self._connection is not None else 0.0

    def check(self, now: float) -> None:
        """Called about every second: end what takes too long."""
        if self._connection is None:
            return
        if now - self._started > self._patience.total:
            self.fail(ErrorCode.TOTAL_TIMEOUT, "")
        elif self.paused:
            return
        elif not self.first_at:
            if self._patience.first_byte is not None and now - self.sent_at > self._patience.first_byte:
                self.fail(ErrorCode.ENGINE_TIMEOUT, "")
        elif now - self.last_at > self._patience.between_chunks:
            self.fail(ErrorCode.ENGINE_STALLED, "")

    def client_paused(self) -> None:
        """The client does not keep up."""
        self.paused = True
        if self._connection is not None:
            self._connection.transport.pause_reading()

    def client_resumed(self) -> None:
        """The client has caught up."""
        self.paused = False
        self.last_at = monotonic() if self.first_at else 0.0
        if self._connection is not None:
            self._connection.transport.resume_reading()

    def response_began(self, head: ResponseHead) -> None:
        self.head = head
        self._refused = head.status != 200
        self._collected, self._collected_size = [], 0

    def body_received(self, data: bytes, last: bool) -> None:
        now = monotonic()
        self.last_at = now
        if not self.first_at:
            self.first_at = now
        self._collected_size += len(data)
        if self._refused:
            if self._collected_size <= _MAX_ERROR:
                self._collected.append(data)
        elif self._scan is not None:
            self._scan.feed(data)
            self._write_piece(data)
        else:
            self._collected.append(data)
            if self._collected_size > _COLLECT:
                self._forward_collected()

    def whole_received(self, head: ResponseHead, body: bytes) -> None:
        self.head = head
        self.first_at = self.last_at = monotonic()
        self._connection = None
        if head.status == 200:
            self._deliver(head, body)
        elif len(body) <= _MAX_ERROR:
            self.body = body
        self._conclude()

    def shortcut(self) -> asyncio.Protocol | None:
        return None

    def response_ended(self) -> None:
        self._connection = None
        if self._refused:
            self.body = b"".join(self._collected)
        elif self._scan is not None:
            self._write_end()
        elif self.head is not None:
            self._deliver(self.head, b"".join(self._collected))
        self._conclude()

    def response_failed(self, error: Exception) -> None:
        if isinstance(error, ProtocolError):
            self._failed(ErrorCode.ENGINE_PROTOCOL_ERROR, str(error))
        else:
            self._failed(ErrorCode.ENGINE_LOST, str(error) or type(error).__name__)

    def _failed(self, code: ErrorCode, detail: str) -> None:
        self._connection = None
        self.failure, self.detail = code, detail
        if self.opened:
            self.close_with(code)
        self._conclude()

    def close_with(self, _: ErrorCode) -> None:
        """Make sure that the client cannot take what it has for a whole answer."""
        if self._client.transport is not None:
            self._client.transport.abort()

    def _conclude(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _deliver(self, head: ResponseHead, body: bytes) -> None:
        """Send a whole answer."""
        self.body = body
        self._observer.first(self.first_at - self.sent_at)
        self.opened = self.answered = True
        self._write(_WHOLE % (head.content_type or _JSON, len(body), self._fields, body))

    def _forward_collected(self) -> None:
        """Send what there is of a large answer; the rest follows as it comes."""
        body, self._collected = b"".join(self._collected), []
        self._scan = UsageScan()
        self._scan.feed(body)
        self._observer.first(self.first_at - self.sent_at)
        self.opened = self.answered = True
        kind = self.head.content_type if self.head else b""
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        self._write(_PLAIN_HEAD % (kind or _JSON, framing, self._fields))
        self._write_piece(body)

    def _write_piece(self, data: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _write_end(self) -> None:
        if self._chunked:
            self._write(b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        transport = self._client.transport
        if transport is not None:
            self.bytes_out += len(data)
            transport.write(data)
