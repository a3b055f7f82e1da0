"""Incremental parsers for HTTP/1.1 responses and server-sent events: bytes in, pieces out, no I/O.

Written for the receiving side of a load generator: one call per read of the socket, no copies where a read
holds whole chunks and whole events, and nothing accepted that a server must not send.
"""

import re
from enum import Enum

_HEAD_LIMIT = 65_536
_LINE_LIMIT = 4_096
_EVENT_LIMIT = 16 << 20
_FRAMING = {b"content-length", b"transfer-encoding"}
_HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")


class ProtocolError(Exception):
    """The server sent something that is not HTTP/1.1 as RFC 9112 has it."""


class _State(Enum):
    HEAD = "head"
    LENGTH = "body of known length"
    CHUNK_SIZE = "size of a chunk"
    CHUNK_DATA = "chunk"
    CHUNK_END = "end of a chunk"
    TRAILERS = "trailers"
    UNTIL_CLOSE = "body until the connection closes"
    DONE = "done"


class ResponseParser:
    """Parses one response after the other.

    Attributes:
        status: of the current response; 0 until its head is complete.
        keep_alive: whether the connection may carry another request after it.
        event_stream: whether its content type is ``text/event-stream``.
        complete: whether its end has been reached; `reset` starts the next one.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Expect a new response."""
        self.status = 0
        self.keep_alive = False
        self.event_stream = False
        self.complete = False
        self._state = _State.HEAD
        self._held = b""
        self._left = 0

    @property
    def started(self) -> bool:
        """Whether any byte of the response has come."""
        return self._state is not _State.HEAD or bool(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was read; returns the pieces of the body in it.

        Raises:
            ProtocolError: it breaks the protocol, or goes on after the end of the response.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        if self._state is _State.HEAD:
            rest = self._head(data)
            if rest is None:
                return pieces
            data = rest
        state = self._state
        if state is _State.LENGTH:
            self._known_length(data, pieces)
        elif state is _State.UNTIL_CLOSE:
            if data:
                pieces.append(data)
        elif state is _State.DONE:
            if data:
                raise ProtocolError("bytes after the end of the response")
        else:
            self._chunked(data, pieces)
        return pieces

    def end_of_input(self) -> bool:
        """The connection was closed by the server; returns whether that completes the response."""
        if self._state is _State.UNTIL_CLOSE:
            self._finish()
        return self.complete

    def _finish(self) -> None:
        self.complete = True
        self._state = _State.DONE

    def _head(self, data: bytes) -> bytes | None:
        """What follows the response's head; None while that is incomplete."""
        while (end := data.find(b"\r\n\r\n")) >= 0:
            if not data.startswith(b"HTTP/1."):
                raise ProtocolError("not an HTTP/1.1 response")
            head, data = data[:end], data[end + 4 :]
            if self._read_head(head):
                return data
        if len(data) > _HEAD_LIMIT:
            raise ProtocolError("the response's head is too long")
        if data[:7] != b"HTTP/1."[: len(data)]:
            raise ProtocolError("not an HTTP/1.1 response")
        self._held = data
        return None

    def _read_head(self, head: bytes) -> bool:
        lines = head.split(b"\r\n")
        version, _, rest = lines[0].partition(b" ")
        code = rest[:3]
        if not code.isdigit() or len(code) != 3:
            raise ProtocolError("the status line has no status")
        if code[:1] == b"1":
            return False
        headers: dict[bytes, bytes] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon:
                raise ProtocolError("a header line without a colon")
            name, value = name.strip().lower(), value.strip()
            if name in _FRAMING and headers.get(name, value) != value:
                raise ProtocolError("two headers that contradict each other")
            headers[name] = value
        self._frame(int(code), version, headers)
        return True

    def _frame(self, status: int, version: bytes, headers: dict[bytes, bytes]) -> None:
        self.status = status
        connection = headers.get(b"connection", b"").lower()
        self.keep_alive = version == b"HTTP/1.1" and b"close" not in connection
        self.event_stream = headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        if coding is not None:
            if coding.lower() != b"chunked" or length is not None:
                raise ProtocolError("a framing that cannot be trusted")
            self._state = _State.CHUNK_SIZE
        elif status in {204, 304}:
            self._finish()
        elif length is not None:
            if not length.isdigit():
                raise ProtocolError("a Content-Length that is no number")
            self._left = int(length)
            self._state = _State.LENGTH
            if not self._left:
                self._finish()
        else:
            self.keep_alive = False
            self._state = _State.UNTIL_CLOSE

    def _known_length(self, data: bytes, pieces: list[bytes]) -> None:
        have = len(data)
        if have > self._left:
            raise ProtocolError("more bytes than Content-Length announced")
        if have:
            pieces.append(data)
            self._left -= have
        if not self._left:
            self._finish()

    def _chunked(self, data: bytes, pieces: list[bytes]) -> None:
        at, size = 0, len(data)
        if self._state is _State.CHUNK_SIZE:
            whole = _whole_chunk(data)
            if whole is not None:
                pieces.append(whole)
                return
        while at < size:
            state = self._state
            if state is _State.CHUNK_DATA:
                end = min(size, at + self._left)
                pieces.append(data[at:end])
                self._left -= end - at
                at = end
                if not self._left:
                    self._state = _State.CHUNK_END
                continue
            if state is _State.DONE:
                raise ProtocolError("bytes after the end of the response")
            end = data.find(b"\r\n", at)
            if end < 0:
                if size - at > _LINE_LIMIT:
                    raise ProtocolError(f"an endless line where the {state.value} was expected")
                self._held = data[at:]
                return
            self._line(data[at:end])
            at = end + 2

    def _line(self, line: bytes) -> None:
        if self._state is _State.CHUNK_END:
            if line:
                raise ProtocolError("a chunk is longer than its size")
            self._state = _State.CHUNK_SIZE
        elif self._state is _State.TRAILERS:
            if not line:
                self._finish()
        else:
            digits = line.partition(b";")[0].strip()
            if not _HEX.fullmatch(digits):
                raise ProtocolError("a chunk size that is no hexadecimal number")
            self._left = int(digits, 16)
            self._state = _State.CHUNK_DATA if self._left else _State.TRAILERS


def _whole_chunk(data: bytes) -> bytes | None:
    """The chunk in `data` if it holds exactly one, as nearly every read of a stream does; else None."""
    end = data.find(b"\r\n")
    if not 0 < end < 8 or not _HEX.fullmatch(data, 0, end):
        return None
    size = int(data[:end], 16)
    if not size or end + 4 + size != len(data) or not data.endswith(b"\r\n"):
        return None
    return data[end + 2 : -2]


class EventParser:
    """Splits a ``text/event-stream`` into the data of its events (WHATWG HTML, 9.2.6).

    Lines may end in LF or CRLF; a lone CR, which no server sends, is not a line end here.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Take a piece of the body; returns the data of the events that are now complete.

        Raises:
            ProtocolError: an event has no end.
        """
        if b"\r" in piece:
            piece = piece.replace(b"\r", b"")
        if self._held:
            piece = self._held + piece
        *events, self._held = piece.split(b"\n\n")
        if len(self._held) > _EVENT_LIMIT:
            raise ProtocolError("an event without end")
        found: list[bytes] = []
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event:
                found.append(event[6:])
            else:
                data = _event_data(event)
                if data is not None:
                    found.append(data)
        return found


def _event_data(event: bytes) -> bytes | None:
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
