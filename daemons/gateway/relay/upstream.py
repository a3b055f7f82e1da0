"""A connection to an engine: one request at a time, its answer handed on as it arrives."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol, cast

from daemons.gateway.relay.http1 import (
    MAX_HEAD,
    ChunkedBody,
    LengthBody,
    ProtocolError,
    ResponseHead,
    parse_head,
)

_MAX_INTERIM: Final = 16
"""Responses with a status below 200 to one request."""
_TOGETHER: Final = 0.0005
"""Seconds that a request may wait for others of the same moment."""


class Sink(Protocol):
    """What an answer is handed to; the methods are called from the event loop and must not raise."""

    def request_left(self) -> None:
        """The request is on its way."""

    def response_began(self, head: ResponseHead) -> None:
        """The head has arrived."""

    def body_received(self, data: bytes, last: bool) -> None:
        """The next piece of the body, its transfer coding removed; never empty, `last` if none follows."""

    def whole_received(self, head: ResponseHead, body: bytes) -> None:
        """All of an answer has arrived at once, instead of the calls above and of `response_ended`."""

    def shortcut(self) -> asyncio.Protocol | None:
        """What the event loop may call with the next pieces, from a chunk boundary on, if anything.

        It hands to the connection all that is not one whole chunk, the last chunk, and the news that the
        connection is lost.
        """

    def response_ended(self) -> None:
        """The body is complete."""

    def response_failed(self, error: Exception) -> None:
        """The answer will not be completed: `ProtocolError`, or `OSError` when the connection was lost."""


class Home(Protocol):
    """Where a connection goes when its answer is complete."""

    def release(self, connection: "EngineConnection") -> None:
        """Take back a connection that can carry another request."""

    def forget(self, connection: "EngineConnection") -> None:
        """The connection is closed."""


class Outbox:
    """Requests that are about to leave: those of the same moment leave together (docs/decisions/0014).

    Tokens of streams that began together come together, too, and wake their reader once. A request that comes
    alone leaves in the event loop's next round. `clock` tells seconds.
    """

    __slots__ = ("_clock", "_since", "_waiting")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._waiting: list[EngineConnection] = []
        self._since = 0.0

    def add(self, connection: "EngineConnection") -> None:
        """Have `connection` send its request soon."""
        waiting, now = self._waiting, self._clock()
        waiting.append(connection)
        if len(waiting) == 1:
            self._since = now
            asyncio.get_running_loop().call_soon(self.empty)
        elif now - self._since >= _TOGETHER:
            self.empty()

    def empty(self) -> None:
        """Send what waits."""
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.send_now()


class EngineConnection(asyncio.Protocol):
    """A client connection, owned by its `Home` while idle.

    Attributes:
        transport: the transport, set once connected.
        used: answers completed on this connection.
        idle_since: loop time since which it is idle.
    """

    __slots__ = (
        "_body",
        "_head",
        "_home",
        "_interim",
        "_keep_alive",
        "_outbox",
        "_shortcut",
        "_sink",
        "_unsent",
        "idle_since",
        "transport",
        "used",
    )

    def __init__(self, home: Home, outbox: Outbox) -> None:
        self._home = home
        self._outbox = outbox
        self._unsent = b""
        self._sink: Sink | None = None
        self._head = b""
        self._interim = 0
        self._body: LengthBody | ChunkedBody | None = None
        self._keep_alive = True
        self._shortcut: asyncio.Protocol | None = None
        self.transport: asyncio.Transport
        self.used = 0
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        # Whatever the transport were told to call now, it would keep.
        self._shortcut = None
        self._home.forget(self)
        self._fail(exc or ConnectionResetError("the engine closed the connection"))

    def send(self, request: bytes, sink: Sink) -> None:
        """Send `request`, whole and soon, and hand its answer to `sink`."""
        self._sink = sink
        self._interim = 0
        self._unsent = request
        self._outbox.add(self)

    def send_now(self) -> None:
        """Send the request that waits, unless nobody wants its answer any more."""
        request, self._unsent = self._unsent, b""
        if self._sink is None:
            return
        try:
            self.transport.write(request)
        except Exception as error:  # noqa: BLE001 - one connection's fault must not keep the others' requests
            self._fail(error)
        else:
            self._sink.request_left()

    def abort(self) -> None:
        """Drop the connection; the engine takes that as the end of the request. The sink hears no more."""
        self._sink = None
        self._take(None)
        self.transport.abort()

    def _take(self, shortcut: asyncio.Protocol | None) -> None:
        """Have the event loop call `shortcut` instead of this connection, or this one again."""
        if shortcut is not self._shortcut:
            self._shortcut = shortcut
            self.transport.set_protocol(shortcut or self)

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            # Nothing was asked: whatever this is, it must not become somebody's answer.
            self.transport.abort()
            return
        if self._unsent:
            self._fail(ConnectionResetError("the engine answers what was not asked yet"))
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
        self._hand_on(payload, body, sink)

    def _receive_head(self, data: bytes, sink: Sink) -> None:
        head, rest = self._final_head(self._head + data if self._head else data)
        if head is None:
            return
        self._keep_alive = head.keep_alive
        if rest and len(rest) == head.length:
            sink.whole_received(head, rest)
            if self._sink is not None:
                self._free()
            return
        body = ChunkedBody() if head.length is None else LengthBody(head.length)
        self._body = body
        payload = body.feed(rest) if rest else b""
        sink.response_began(head)
        if self._sink is not None:
            self._hand_on(payload, body, sink)

    def _final_head(self, data: bytes) -> tuple[ResponseHead | None, bytes]:
        """The head after any interim ones, and what follows it; None where not all of it has come."""
        while True:
            lines, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                if len(data) > MAX_HEAD:
                    raise ProtocolError("oversized response head")
                self._head = data
                return None, b""
            head = parse_head(lines)
            if head.status >= 200:
                self._head = b""
                return head, rest
            if head.status == 101:
                raise ProtocolError("the engine switches protocols unasked")
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise ProtocolError("too many interim responses")
            data = rest

    def _hand_on(self, payload: bytes, body: LengthBody | ChunkedBody, sink: Sink) -> None:
        if payload:
            sink.body_received(payload, body.done)
        if self._sink is None:
            return
        if not body.done:
            self._take(sink.shortcut() if body.aligned else None)
            return
        self._take(None)
        self._free()
        sink.response_ended()

    def _free(self) -> None:
        """The answer is complete, and the connection ready for another request if it can carry one."""
        self._sink = self._body = None
        self.used += 1
        if self._keep_alive:
            # The last piece may have been more than its client could take.
            self.transport.resume_reading()
            self._home.release(self)
        else:
            self.transport.close()

    def _fail(self, error: Exception) -> None:
        sink, self._sink = self._sink, None
        self._take(None)
        self.transport.abort()
        if sink is not None:
            sink.response_failed(error)
