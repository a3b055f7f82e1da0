"""The first stage: a well-formed request with a name and a body of bearable size."""

import asyncio
import random
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import StreamReader, hdrs, web
from multidict import CIMultiDictProxy, istr

from daemons.gateway.errors import ApiError, ErrorCode

if TYPE_CHECKING:
    from daemons.gateway.api.arrival import Arrival

_ONE_PIECE = 32768

X_REQUEST_ID = istr("X-Request-Id")
_TRACEPARENT = istr("traceparent")
# Identifiers are logged as they are, hence nothing in them that looks like a key.
_REQUEST_ID = re.compile(r"(?!(?:.{0,126}[.-])?(?i:sk-|hf_))[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# W3C Trace Context, version 00.
_TRACE = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def new_id() -> str:
    """A fresh identifier; unique, not secret."""
    return random.getrandbits(128).to_bytes(16, "big").hex()


def request_id(headers: CIMultiDictProxy[str]) -> str:
    """The client's ``X-Request-Id`` where it is well-formed, else a new one."""
    given = headers.get(X_REQUEST_ID)
    return given if given is not None and _REQUEST_ID.fullmatch(given) else new_id()


def traceparent(headers: CIMultiDictProxy[str]) -> bytes:
    """The header line that carries on the client's trace; empty where it has none."""
    given = headers.get(_TRACEPARENT)
    return b"traceparent: %b\r\n" % given.encode() if given is not None and _TRACE.fullmatch(given) else b""


def trace_context(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    """The client's trace (W3C Trace Context), empty where it has none that is well-formed."""
    given = headers.get(_TRACEPARENT)
    if given is None or not _TRACE.fullmatch(given):
        return {}
    return {"traceparent": given, "tracestate": headers.get("tracestate", "")[:512]}


def check_framing(headers: CIMultiDictProxy[str]) -> None:
    """Refuse what could be read as another message by somebody else.

    Raises:
        ApiError: the transfer coding is not plainly ``chunked``, the body is encoded, or something unknown is
            expected.
    """
    if hdrs.TRANSFER_ENCODING in headers and [c.lower() for c in headers.getall(hdrs.TRANSFER_ENCODING)] != [
        "chunked"
    ]:
        raise ApiError(ErrorCode.INVALID_HTTP, "The only Transfer-Encoding taken here is 'chunked'.")
    if hdrs.CONTENT_ENCODING in headers and [c.lower() for c in headers.getall(hdrs.CONTENT_ENCODING)] != [
        "identity"
    ]:
        raise ApiError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "Request bodies must not be compressed.")
    if hdrs.EXPECT in headers and headers[hdrs.EXPECT].lower() != "100-continue":
        raise ApiError(ErrorCode.INVALID_HTTP, "The only Expect taken here is '100-continue'.", status=417)


def body_at_hand(headers: CIMultiDictProxy[str], content: StreamReader, limit: int) -> bytes | None:
    """The body of a request if it has come whole, as it most often has; else None.

    Raises:
        ApiError: it has more than `limit` bytes, or what could be read as another message by somebody else.
    """
    check_framing(headers)
    length = headers.get(hdrs.CONTENT_LENGTH)
    if length is not None and int(length) > limit:
        raise too_large(limit)
    if not content.is_eof():
        return None
    if 0 < content.total_bytes <= _ONE_PIECE and len(content._buffer) == 1:  # noqa: SLF001 - a fifth of the cost
        # So small that it has not paused its connection, which reading would resume.
        body: bytes = content._buffer.popleft()  # noqa: SLF001
        content._size = 0  # noqa: SLF001
    else:
        body = content.read_nowait()
    if len(body) > limit:
        raise too_large(limit)
    return body


async def read_body(request: "Arrival", limit: int, seconds: float, take: Callable[[int], None]) -> bytes:
    """The body of `request` that has not come whole.

    Args:
        request: the request.
        limit: bytes it may have.
        seconds: in which it must arrive.
        take: is told how large the body is, as far as that is known before it is read, and may refuse it.

    Raises:
        ApiError: it is larger, refused, or does not arrive in time.
    """
    length = request.message.headers.get(hdrs.CONTENT_LENGTH)
    if length is not None:
        take(int(length))
    transport = request.client.transport
    if hdrs.EXPECT in request.message.headers and transport is not None:
        transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        async with asyncio.timeout(seconds):
            return await _read_at_most(request.content, limit, take if length is None else None)
    except TimeoutError:
        raise ApiError(
            ErrorCode.REQUEST_TIMEOUT, f"The request body did not arrive within {seconds:g} s."
        ) from None
    except web.RequestPayloadError as error:
        raise ApiError(ErrorCode.INVALID_HTTP, f"The request body is malformed: {error}") from None


async def _read_at_most(payload: StreamReader, limit: int, take: Callable[[int], None] | None) -> bytes:
    body = bytearray()
    while not payload.at_eof():
        piece = await payload.readany()
        if len(body) + len(piece) > limit:
            raise too_large(limit)
        if take is not None:
            take(len(body) + len(piece))
        body += piece
    return bytes(body)


def too_large(limit: int) -> ApiError:
    """The refusal of a body of more than `limit` bytes."""
    return ApiError(
        ErrorCode.BODY_TOO_LARGE, f"The request body is larger than {limit} bytes, the most taken here."
    )
