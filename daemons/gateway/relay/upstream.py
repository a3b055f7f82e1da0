"""A connection to an engine: one request at a time, its answer handed on as it arrives."""

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from daemons.gateway.relay.http1 import (
    MAX_HEAD,
    ChunkedBody,
    LengthBody,
    ProtocolError,
    ResponseHead,
    parse_head,
)


class Sink(Protocol):
    """What an answer is handed to; the methods are called from the event loop and must not raise."""

    def response_began(self, head: ResponseHead) -> None:
        """The head has arrived."""

    def body_received(self, data: bytes, last: bool) -> None:
        """The next piece of the body, its transfer coding removed; never empty, `last` if none follows."""

    def shortcut(self, otherwise: "Receive") -> "Receive | None":
        """What takes the next pieces as they come off the wire, from a chunk boundary on, if anything.

        It hands to `otherwise` all that is not one whole chunk, and the last chunk.
        """

    def response_ended(self) -> None:
        """The body is complete."""

    def response_failed(self, error: Exception) -> None:
        """The answer will not be completed: `ProtocolError`, or `OSError` when the connection was lost."""


Receive = Callable[[bytes], None]


class Home(Protocol):
    """Where a connection goes when its answer is complete."""

    def release(self, connection: "EngineConnection") -> None:
        """Take back a connection that can carry another request."""

    def forget(self, connection: "EngineConnection") -> None:
        """The connection is closed."""


class EngineConnection(asyncio.Protocol):
    """A client connection, owned by its `Home` while idle.

    Attributes:
        data_received: takes what arrives; the event loop calls what it found here when it was last told.
        transport: the transport, set once connected.
        used: answers completed on this connection.
        idle_since: loop time since which it is idle.
    """

    __slots__ = (
        "_body",
        "_head",
        "_home",
        "_keep_alive",
        "_sink",
        "data_received",
        "idle_since",
        "transport",
        "used",
    )

    def __init__(self, home: Home) -> None:
        self._home = home
        self._sink: Sink | None = None
        self._head = b""
        self._body: LengthBody | ChunkedBody | None = None
        self._keep_alive = True
        self.data_received: Receive = self._receive  # type: ignore[assignment]
        self.transport: asyncio.Transport
        self.used = 0
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._home.forget(self)
        self._fail(exc or ConnectionResetError("the engine closed the connection"))

    def send(self, request: bytes, sink: Sink) -> None:
        """Send `request`, whole, and hand its answer to `sink`."""
        self._sink = sink
        self.transport.write(request)

    def abort(self) -> None:
        """Drop the connection; the engine takes that as the end of the request. The sink hears no more."""
        self._sink = None
        self._receive_with(self._receive)
        self.transport.abort()

    def _receive_with(self, receive: Receive) -> None:
        if receive != self.data_received:
            self.data_received = receive
            self.transport.set_protocol(self)

    def _receive(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            # Nothing was asked: whatever this is, it must not become somebody's answer.
            self.transport.abort()
            return
        try:
            body = self._body
            if body is None:
                self._receive_head(data, sink)
                return
            payload = body.feed(data)
        except ProtocolError as error:
            self._fail(error)
            return
        if payload:
            sink.body_received(payload, body.done)
        if body.done:
            self._finish()
        elif self._sink is not None:
            shortcut = sink.shortcut(self._receive) if body.aligned else None
            self._receive_with(shortcut or self._receive)

    def _receive_head(self, data: bytes, sink: Sink) -> None:
        if self._head:
            data = self._head + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD:
                raise ProtocolError("oversized response head")
            self._head = data
            return
        head = parse_head(data[:end])
        self._head = b""
        rest = data[end + 4 :]
        if head.status < 200:
            if head.status == 101:
                raise ProtocolError("the engine switches protocols unasked")
            if rest:
                self._receive_head(rest, sink)
            return
        self._keep_alive = head.keep_alive
        if rest and len(rest) == head.length:
            self._receive_whole(head, rest, sink)
            return
        body = ChunkedBody() if head.length is None else LengthBody(head.length)
        self._body = body
        payload = body.feed(rest) if rest else b""
        sink.response_began(head)
        if payload and self._sink is not None:
            sink.body_received(payload, body.done)
        if body.done:
            self._finish()

    def _receive_whole(self, head: ResponseHead, body: bytes, sink: Sink) -> None:
        """The common answer in one piece, which came with its head."""
        sink.response_began(head)
        if self._sink is not None:
            sink.body_received(body, True)
        self._finish()

    def _finish(self) -> None:
        sink, self._sink, self._body = self._sink, None, None
        self._receive_with(self._receive)
        if sink is None:
            return
        self.used += 1
        if self._keep_alive:
            # The last piece may have been more than its client could take.
            self.transport.resume_reading()
            self._home.release(self)
        else:
            self.transport.close()
        sink.response_ended()

    def _fail(self, error: Exception) -> None:
        sink, self._sink = self._sink, None
        self._receive_with(self._receive)
        self.transport.abort()
        if sink is not None:
            sink.response_failed(error)
