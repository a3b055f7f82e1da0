"""Parsing of HTTP/1.1 responses, strict where leniency would let one message be read as two.

RFC 9112; what a well-behaved engine never sends (obsolete folding, conflicting lengths, transfer codings
other than ``chunked``, bodies that end with the connection) is refused.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

MAX_HEAD: Final = 65536
"""Bytes of a response head."""
_MAX_LINE: Final = 4096
_SMALL: Final = 512
"""Bytes of a chunk-size line with its extensions, and of all trailers together."""

_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n\0]*)?")
_HEADER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\r\n\0]*)")
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_LENGTH_DIGITS: Final = 15
# Eight digits are 4 GiB; nothing an engine sends in one piece is larger.
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?")
_CRLF: Final = b"\r\n"
_LENGTHS: Final = 4096


def _chunk_lines() -> list[bytes]:
    lines = [b""] * _LENGTHS
    for size in range(1, _LENGTHS - 7):
        line = b"%x\r\n" % size
        lines[len(line) + size + 2] = line
    return lines


CHUNK_LINES: Final = _chunk_lines()
"""What a chunk begins with, by the length of all of it; empty where no chunk has that length."""


class ProtocolError(Exception):
    """The peer does not speak HTTP/1.1 as it must; the connection cannot be used again."""


class ResponseHead:
    """Status and headers of a response.

    Attributes:
        status: HTTP status.
        headers: by lower-case name; of repeated headers the last.
        length: octets of the body; None when it is chunked.
        keep_alive: whether the connection may be used again afterwards.
        content_type: the media type with its parameters, lower case; empty when there is none.
        streams: the body is a stream of server-sent events.
    """

    __slots__ = ("content_type", "headers", "keep_alive", "length", "status", "streams")

    def __init__(
        self, status: int, headers: dict[bytes, bytes], length: int | None, keep_alive: bool
    ) -> None:
        self.status = status
        self.headers = headers
        self.length = length
        self.keep_alive = keep_alive
        self.content_type = headers.get(b"content-type", b"").lower()
        self.streams = self.content_type.startswith(b"text/event-stream")


def parse_head(data: bytes) -> ResponseHead:
    """A response head from `data`, which ends before the empty line.

    Raises:
        ProtocolError: the head is malformed or ambiguous.
    """
    return _known_head(data) if len(data) < _SMALL else _parse(data, _status, _header)


# An engine's streams begin with the same bytes within the same second, many times over.
@lru_cache(maxsize=512)
def _known_head(data: bytes) -> ResponseHead:
    return _parse(data, _known_status, _known_header)


def _parse(
    data: bytes,
    status_of: Callable[[bytes], tuple[int, bool]],
    header_of: Callable[[bytes], tuple[bytes, bytes]],
) -> ResponseHead:
    lines = data.split(_CRLF)
    status, keep_alive = status_of(lines.pop(0))
    headers: dict[bytes, bytes] = {}
    for name, value in map(header_of, lines):
        if name in headers and name in _FRAMING:
            raise ProtocolError(f"{name.decode()} is given twice")
        headers[name] = value
    length = _body_length(status, headers)
    connection = headers.get(b"connection")
    if connection is not None:
        connection = connection.lower()
        keep_alive = b"close" not in connection and (keep_alive or b"keep-alive" in connection)
    return ResponseHead(status, headers, length, keep_alive)


def _status(line: bytes) -> tuple[int, bool]:
    """The status, and whether the version keeps connections alive."""
    match = _STATUS.fullmatch(line)
    if match is None:
        raise ProtocolError("malformed status line")
    return int(match.group(2)), match.group(1) == b"1"


def _header(line: bytes) -> tuple[bytes, bytes]:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise ProtocolError("malformed header line")
    return match.group(1).lower(), match.group(2).strip(b" \t")


# Heads differ in their lengths and dates, and most of their lines in nothing.
_known_status = lru_cache(maxsize=64)(_status)
_known_header = lru_cache(maxsize=2048)(_header)


def _body_length(status: int, headers: dict[bytes, bytes]) -> int | None:
    coding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise ProtocolError("both Content-Length and Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise ProtocolError("a transfer coding other than chunked")
        return None
    if status < 200 or status in {204, 304}:
        return 0
    if length is None:
        raise ProtocolError("a body of unknown length")
    if not length.isdigit() or len(length) > _LENGTH_DIGITS:
        raise ProtocolError("malformed Content-Length")
    return int(length)


@lru_cache(maxsize=4096)
def _chunk_size(line: bytes) -> int:
    match = _CHUNK.fullmatch(line)
    if match is None:
        raise ProtocolError("malformed or oversized chunk size")
    return int(match.group(1), 16)


class LengthBody:
    """Decodes a body of known length."""

    __slots__ = ("_left", "done")

    aligned = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`.

        Raises:
            ProtocolError: there is more than the body.
        """
        self._left -= len(data)
        if self._left <= 0:
            if self._left:
                raise ProtocolError("data after the end of the body")
            self.done = True
        return data


class ChunkedBody:
    """Decodes a chunked body, however it is split; extensions and trailers are dropped.

    Attributes:
        aligned: the next octet begins a chunk.
        done: the body is complete.
    """

    __slots__ = ("_left", "_rest", "_trailers", "aligned", "done")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self._trailers = -1
        self.aligned = True
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`.

        Raises:
            ProtocolError: the framing is broken, or there is more than the body.
        """
        if self.aligned:
            size = len(data)
            line = CHUNK_LINES[size] if size < _LENGTHS else b""
            at = len(line)
            if line and data[:at] == line and data[-2:] == _CRLF:
                return data[at:-2]
            # Several whole chunks, without a line's end inside, as those of streamed events are.
            parts = data.split(_CRLF)
            rest = parts.pop()
            chunks = parts[1::2]
            if not rest and parts[::2] == [b"%x" % len(chunk) for chunk in chunks] and all(chunks[:-1]):
                if chunks and not chunks[-1]:
                    self.done = True
                    self.aligned = False
                return b"".join(chunks)
        payload = self._feed(data)
        self.aligned = not self._rest and not self._left and self._trailers < 0
        return payload

    def _feed(self, data: bytes) -> bytes:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        out: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if self.done:
                raise ProtocolError("data after the end of the body")
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            if self._left:
                at = self._expect_end(data, at)
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0 or (self._trailers < 0 and line_end == at):
                if line_end == at or size - at > _MAX_LINE:
                    raise ProtocolError("malformed or oversized chunk size")
                self._rest = data[at:]
                break
            self._line(data[at:line_end])
            at = line_end + 2
        return out[0] if len(out) == 1 else b"".join(out)

    def _expect_end(self, data: bytes, at: int) -> int:
        """Consume what is there of the CRLF after a chunk's data; the new position."""
        expected = b"\r\n"[2 - self._left :]
        given = data[at : at + self._left]
        if not expected.startswith(given):
            raise ProtocolError("a chunk does not end where its size says")
        self._left -= len(given)
        return at + len(given)

    def _line(self, line: bytes) -> None:
        if self._trailers >= 0:
            self._trailers += len(line)
            if self._trailers > _MAX_LINE:
                raise ProtocolError("oversized trailers")
            self.done = not line
            return
        if len(line) > _MAX_LINE:
            raise ProtocolError("oversized chunk extension")
        size = _chunk_size(line)
        if size:
            self._left = size + 2
        else:
            self._trailers = 0
