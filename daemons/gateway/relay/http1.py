"""Parsing of HTTP/1.1 responses, strict where leniency would let one message be read as two.

RFC 9112; what a well-behaved engine never sends (obsolete folding, conflicting lengths, transfer codings
other than ``chunked``, bodies that end with the connection) is refused.
"""

import re
from functools import lru_cache

MAX_HEAD = 65536
"""Bytes of a response head."""
_MAX_LINE = 4096
_SMALL = 512
"""Bytes of a chunk-size line with its extensions, and of all trailers together."""

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n\0]*)?")
_FIELD = rb"\r\n([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\r\n\0]*)"
_HEADER = re.compile(_FIELD)
_HEADERS = re.compile(rb"(?:" + _FIELD + rb")*")
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_LENGTH = re.compile(rb"[0-9]{1,15}")
# Eight digits are 4 GiB; nothing an engine sends in one piece is larger.
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]*)?")


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
    """

    __slots__ = ("content_type", "headers", "keep_alive", "length", "status")

    def __init__(
        self, status: int, headers: dict[bytes, bytes], length: int | None, keep_alive: bool
    ) -> None:
        self.status = status
        self.headers = headers
        self.length = length
        self.keep_alive = keep_alive
        self.content_type = headers.get(b"content-type", b"").lower()


def parse_head(data: bytes) -> ResponseHead:
    """A response head from `data`, which ends before the empty line.

    Raises:
        ProtocolError: the head is malformed or ambiguous.
    """
    return _parse_known(data) if len(data) < _SMALL else _parse(data)


def _parse(data: bytes) -> ResponseHead:
    end = data.find(b"\r\n")
    status = _STATUS.fullmatch(data, 0, len(data) if end < 0 else end)
    if status is None:
        raise ProtocolError("malformed status line")
    rest = b"" if end < 0 else data[end:]
    if _HEADERS.fullmatch(rest) is None:
        raise ProtocolError("malformed header line")
    headers: dict[bytes, bytes] = {}
    for given, value in _HEADER.findall(rest):
        name = given.lower()
        if name in headers and name in _FRAMING:
            raise ProtocolError(f"{name.decode()} is given twice")
        headers[name] = value.strip(b" \t")
    code = int(status.group(2))
    length = _body_length(code, headers)
    connection = headers.get(b"connection", b"").lower()
    keep_alive = b"close" not in connection and (status.group(1) == b"1" or b"keep-alive" in connection)
    return ResponseHead(code, headers, length, keep_alive)


# An engine's streams begin with the same bytes within the same second, many times over.
_parse_known = lru_cache(maxsize=512)(_parse)


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
    if _LENGTH.fullmatch(length) is None:
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
    """Decodes a chunked body, however it is split; extensions and trailers are dropped."""

    __slots__ = ("_left", "_rest", "_trailers", "done")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self._trailers = -1
        self.done = False

    @property
    def aligned(self) -> bool:
        """Whether the next octet begins a chunk."""
        return not self._rest and not self._left and self._trailers < 0

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`.

        Raises:
            ProtocolError: the framing is broken, or there is more than the body.
        """
        if not self._rest and not self._left:
            # One whole chunk, the common case of a streamed event.
            end = data.find(b"\r\n", 0, 32)
            if end > 0 and self._trailers < 0:
                size = _chunk_size(data[:end])
                if size and len(data) == end + size + 4 and data.endswith(b"\r\n"):
                    return data[end + 2 : -2]
        return self._feed(data)

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
