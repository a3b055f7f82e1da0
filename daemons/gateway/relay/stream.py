"""A streamed answer on its way: events filtered and forwarded as they come, a failure told as an event."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from daemons.gateway.errors import ErrorCode
from daemons.gateway.relay.engine_error import error_name
from daemons.gateway.relay.http1 import CHUNK_LINES, ProtocolError, ResponseHead
from daemons.gateway.relay.relay import Client, Observer, Patience, Relay
from daemons.gateway.relay.sse import USAGE_AFTER_CHOICES, EventFilter, OpenAIFilter
from daemons.gateway.relay.usage import TokenCounts

ErrorEvent = Callable[[ErrorCode], bytes]
"""Makes the event that tells a stream's reader of a failure, in the API's own form."""

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"X-Accel-Buffering: no\r\n%b%b\r\n"
)
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
_END: Final = b"0\r\n\r\n"
# Names of this module are constants to a compiler, those of another are looked up.
_CHUNK_LINES: Final = CHUNK_LINES
_MARK: Final = USAGE_AFTER_CHOICES
_MARK_SIZE: Final = len(USAGE_AFTER_CHOICES)
_SIZES: Final = len(CHUNK_LINES)
_SIZE_LINES: Final = [b"%x\r\n" % size for size in range(_SIZES)]
_EVENT_LINES: Final = [b"%x\r\n" % (size + 5) for size in range(_SIZES)]
"""What a chunk begins with whose event had so many bytes before the end of its choices."""
_OPEN: Final = ord("{")
_NEWLINE: Final = ord("\n")
_USAGE_END: Final = b"}}\n\n\r\n"
_EVENT_END: Final = b"}]}\n\n\r\n"
_COMMENT: Final = b": keep-alive\n\n"


class StreamRelay(Relay, asyncio.Protocol):
    """A `Relay` for server-sent events; once they come, the event loop calls it in its connection's place.

    The response head waits for the first event, or for the first keep-alive comment: until then a failure
    keeps its status code, and after a comment another engine may still take over.
    """

    __slots__ = (
        "_ended",
        "_error_event",
        "_filter",
        "_forward",
        "_gap",
        "_make_filter",
        "_stripped",
        "_usage_size",
        "_written_at",
    )

    def __init__(
        self,
        client: Client,
        *,
        fields: bytes,
        patience: Patience,
        observer: Observer,
        events: Callable[[], EventFilter],
        error_event: ErrorEvent,
        chunked: bool,
    ) -> None:
        """As `Relay`; `events` makes a fresh filter for each attempt."""
        super().__init__(client, fields, patience, observer, chunked)
        self._make_filter = events
        self._filter = events()
        self._gap = observer.gap
        self._stripped: OpenAIFilter
        self._forward: Callable[[bytes], None]
        self._error_event = error_event
        self._usage_size = 0
        self._written_at = self._started
        self._ended = False

    def _forget_attempt(self) -> None:
        super()._forget_attempt()
        self._filter = self._make_filter()

    def usage(self) -> TokenCounts | None:
        return self._filter.usage()

    def check(self, now: float) -> None:
        super().check(now)
        if self._connection is None or self.first_at or self.paused:
            return
        if now - self._written_at >= self._patience.keep_alive:
            self._send(_COMMENT, now)

    def response_began(self, head: ResponseHead) -> None:
        super().response_began(head)
        if not self._refused and not head.streams:
            self.fail(
                ErrorCode.ENGINE_PROTOCOL_ERROR, "the engine answers a streaming request without a stream"
            )

    def body_received(self, data: bytes, last: bool) -> None:
        if self._refused:
            super().body_received(data, last)
            return
        events = self._filter
        before = events.events
        try:
            out = events.feed(data)
        except ProtocolError as error:
            self.fail(ErrorCode.ENGINE_PROTOCOL_ERROR, str(error))
            return
        now = monotonic()
        if events.events != before:
            # Only events are progress: vLLM's comments go on while its engine hangs.
            if self.first_at:
                self._observer.gap(now - self.last_at)
            else:
                self.first_at = now
                self._observer.first(now - self.sent_at)
            self.last_at = now
        if out and (self.first_at or events.complete):
            self.answered = True
            self._send(out, now, last=last and events.complete)
        if events.error is not None:
            self.fail(ErrorCode.ENGINE_ERROR, error_name(events.error))

    def whole_received(self, head: ResponseHead, body: bytes) -> None:
        self.response_began(head)
        if self._connection is not None:
            self.body_received(body, True)
        if self._connection is not None:
            self.response_ended()

    def shortcut(self) -> asyncio.Protocol | None:
        events, transport = self._filter, self._client.transport
        if not (self.first_at and self._chunked and isinstance(events, OpenAIFilter) and events.strips):
            return None
        if transport is None:
            return None
        self._stripped, self._forward = events, transport.write
        return self

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._connection.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a chunk that holds one event with choices that ends with its usage, as most do.

        Does what the general way would, in one call instead of a dozen; what looks different is left to that.
        """
        size = len(data)
        line = _CHUNK_LINES[size] if size < _SIZES else b""
        at = len(line)
        # A usage is as long as the one before until one of its numbers has another digit.
        end = size - self._usage_size
        if end < at + _MARK_SIZE or data[end - _MARK_SIZE : end] != _MARK:
            end = data.rfind(_MARK) + _MARK_SIZE
            self._usage_size = size - end
        usage = event = b""
        # Compiled, a slice whose end lies before its start raises.
        if end >= at + _MARK_SIZE:
            usage, event = data[end:], data[at : end - _MARK_SIZE]
        if not line or data[:at] != line or usage[-6:] != _USAGE_END or _OPEN in usage or _NEWLINE in event:
            if self._connection is not None:
                self._connection.data_received(data)
            return
        now = monotonic()
        self._gap(now - self.last_at)
        self.last_at = now
        self._stripped.latest = data
        out = _EVENT_LINES[len(event)] + event + _EVENT_END
        self.bytes_out += len(out)
        self._forward(out)

    def response_ended(self) -> None:
        if self._refused:
            super().response_ended()
        elif self._filter.complete:
            self._connection = None
            self._finish()
            self._conclude()
        else:
            self._failed(ErrorCode.ENGINE_LOST, "the engine ended the stream before the answer was complete")

    def response_failed(self, error: Exception) -> None:
        if self._filter.complete:
            # Its reader has been told that it is, and will not look at an error behind that.
            self.response_ended()
        else:
            super().response_failed(error)

    def _failed(self, code: ErrorCode, detail: str) -> None:
        self._connection = None
        self.failure, self.detail = code, detail
        if self.answered:
            self.close_with(code)
        self._conclude()

    def close_with(self, code: ErrorCode) -> None:
        """End an opened stream with an error: it never looks complete, and its body ends cleanly."""
        self._send(self._error_event(code), monotonic(), last=True)

    def _send(self, data: bytes, now: float, *, last: bool = False) -> None:
        """Write `data`, with the response head before the first piece and the body's end after the last."""
        self._written_at = now
        if self._chunked:
            size = len(data)
            data = b"".join((_SIZE_LINES[size] if size < _SIZES else b"%x\r\n" % size, data, b"\r\n"))
            if last:
                data += _END
                self._ended = True
        if not self.opened:
            self.opened = True
            data = _HEAD % (_CHUNKED if self._chunked else b"", self._fields) + data
        transport = self._client.transport
        if transport is not None:
            self.bytes_out += len(data)
            transport.write(data)

    def _finish(self) -> None:
        if self._chunked and not self._ended:
            self._ended = True
            self._write(_END)
