"""The response parser: any split gives the same body, and nothing ambiguous is taken."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.relay.http1 import ChunkedBody, LengthBody, ProtocolError, parse_head

OK = b"HTTP/1.1 200 OK\r\n"


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at the given places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body, and one of its encodings."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=300), max_size=8))
    extension = draw(st.sampled_from([b"", b";a=b", b' ; x="y"']))
    upper = draw(st.booleans())
    wire = b""
    for piece in pieces:
        size = b"%x" % len(piece)
        wire += (size.upper() if upper else size) + extension + b"\r\n" + piece + b"\r\n"
    trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d\r\n"]))
    return b"".join(pieces), wire + b"0\r\n" + trailer + b"\r\n"


@given(chunked(), st.lists(st.integers(min_value=0, max_value=5000), max_size=40))
def test_a_chunked_body_is_the_same_however_it_is_split(body: tuple[bytes, bytes], cuts: list[int]) -> None:
    expected, wire = body
    decoder = ChunkedBody()
    assert b"".join(decoder.feed(piece) for piece in split(wire, cuts)) == expected
    assert decoder.done


@given(chunked(), st.integers(min_value=0, max_value=5000))
def test_a_truncated_chunked_body_is_never_done(body: tuple[bytes, bytes], cut: int) -> None:
    _, wire = body
    decoder = ChunkedBody()
    decoder.feed(wire[: cut % len(wire)])
    assert not decoder.done


@given(chunked(), st.binary(min_size=1, max_size=20))
def test_data_after_the_end_is_refused(body: tuple[bytes, bytes], more: bytes) -> None:
    decoder = ChunkedBody()
    with pytest.raises(ProtocolError):
        decoder.feed(body[1] + more)


@given(st.binary(max_size=400))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    decoder = ChunkedBody()
    try:
        decoder.feed(data)
    except ProtocolError:
        return
    assert len(data) < 4200 or decoder.done


@pytest.mark.parametrize(
    "wire",
    [
        b"100000000\r\n",
        b"-1\r\n",
        b"+1\r\nx",
        b"0x1\r\n",
        b" 1\r\nx\r\n",
        b"1_0\r\n",
        b"g\r\n",
        b"\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\n",
        b"1\nx\n",
        b"5" * 5000,
        b"0\r\n" + b"a: " + b"b" * 5000,
    ],
)
def test_broken_chunks_are_refused(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        ChunkedBody().feed(wire + b"\r\n" * 3)


def test_a_body_of_known_length_ends_exactly() -> None:
    body = LengthBody(5)
    assert body.feed(b"abc") == b"abc"
    assert not body.done
    body.feed(b"de")
    assert body.done
    with pytest.raises(ProtocolError):
        LengthBody(2).feed(b"abc")


@pytest.mark.parametrize(
    "head",
    [
        OK + b"Content-Length: 5\r\nContent-Length: 5",
        OK + b"Content-Length: 5\r\nContent-Length: 6",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        OK + b"Transfer-Encoding: gzip, chunked",
        OK + b"Transfer-Encoding: identity",
        OK + b"Transfer-Encoding: xchunked",
        OK + b"Content-Length: +5",
        OK + b"Content-Length: 5, 5",
        OK + b"Content-Length: 0x5",
        OK + b"Content-Length:",
        OK + b"X: a\r\n folded\r\nContent-Length: 1",
        OK + b"X : a\r\nContent-Length: 1",
        OK + b"X: a\nContent-Length: 1",
        OK + b"X: a\0b\r\nContent-Length: 1",
        OK + b"no colon\r\nContent-Length: 1",
        b"HTTP/2.0 200 OK\r\nContent-Length: 1",
        b"HTTP/1.1 20 OK\r\nContent-Length: 1",
        b"HTTP/1.1 999 OK\r\nContent-Length: 1",
        b"ICY 200 OK\r\nContent-Length: 1",
        b"HTTP/1.1 200 OK",
    ],
)
def test_ambiguous_or_malformed_heads_are_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_head(head)


@given(st.binary(max_size=300))
def test_any_head_is_read_or_refused(data: bytes) -> None:
    try:
        parse_head(OK + data)
    except ProtocolError:
        return


def test_a_plain_head() -> None:
    head = parse_head(
        OK + b"Content-Type: Text/Event-Stream\r\nTRANSFER-ENCODING: Chunked\r\nX:\t y \r\nConnection: close"
    )
    assert head.content_type == b"text/event-stream"
    assert head.length is None
    assert not head.keep_alive
    assert head.headers[b"x"] == b"y"
    assert parse_head(b"HTTP/1.1 204 No Content").length == 0
