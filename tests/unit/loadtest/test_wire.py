"""The wire parsers: any split of the bytes gives the same pieces, any damage is seen."""

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.loadtest.client.answers import reason_in
from daemons.loadtest.client.wire import EventParser, ProtocolError, ResponseParser

EVENTS = [b'{"a":1}', b"[DONE]", b"x" * 300, b"\xc3\xa9", b"{}"]
STREAM = b"".join(b"data: " + event + b"\n\n" for event in EVENTS)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def chunked(body: bytes, sizes: list[int]) -> bytes:
    out, at = b"", 0
    for size in [*sizes, len(body)]:
        piece = body[at : at + size]
        if piece:
            out += b"%X;ext=1\r\n%s\r\n" % (len(piece), piece)
            at += len(piece)
    return out + b"0\r\nTrailer: x\r\n\r\n"


CUTS = st.lists(st.integers(0, 5000), max_size=30)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@given(cuts=CUTS, sizes=st.lists(st.integers(1, 400), max_size=20), interim=st.booleans())
def test_any_split_of_a_chunked_stream_gives_the_same_events(
    cuts: list[int], sizes: list[int], interim: bool
) -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD if interim else HEAD
    parser, events, found = ResponseParser(), EventParser(), []
    for piece in split(head + chunked(STREAM, sizes), cuts):
        assert not parser.complete
        for body in parser.feed(piece):
            found += events.feed(body)
    assert parser.complete
    assert parser.keep_alive
    assert parser.event_stream
    assert found == EVENTS


@given(cuts=CUTS, end=st.integers(0, 1000))
def test_a_truncated_stream_is_never_complete(cuts: list[int], end: int) -> None:
    whole = HEAD + chunked(STREAM, [50, 50])
    parser = ResponseParser()
    for piece in split(whole[: end % len(whole)], cuts):
        parser.feed(piece)
    assert not parser.end_of_input()


@given(cuts=CUTS, body=st.binary(max_size=300))
def test_a_body_of_known_length(cuts: list[int], body: bytes) -> None:
    parser = ResponseParser()
    whole = b"HTTP/1.1 503 Busy\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    got = b"".join(b for piece in split(whole, cuts) for b in parser.feed(piece))
    assert (parser.complete, parser.status, got) == (True, 503, body)


def test_a_body_that_ends_with_the_connection() -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.0 200 OK\r\n\r\nab") == [b"ab"]
    assert not parser.complete
    assert parser.end_of_input()
    assert not parser.keep_alive


@pytest.mark.parametrize(
    "damaged",
    [
        b"NOT HTTP\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        HEAD + b"xyz\r\n",
        HEAD + b"1\r\nab\r\n",
        HEAD + b"0\r\n\r\nmore",
        HEAD + b"f" * 5000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000,
    ],
)
def test_what_a_server_must_not_send(damaged: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseParser().feed(damaged)


@given(data=st.binary(max_size=400), cuts=CUTS)
def test_noise_never_breaks_the_parser_otherwise(data: bytes, cuts: list[int]) -> None:
    parser = ResponseParser()
    with contextlib.suppress(ProtocolError):
        for piece in split(b"HTTP/1.1 200 OK\r\n" + data, cuts):
            parser.feed(piece)


@given(cuts=CUTS)
def test_events_with_comments_names_and_crlf(cuts: list[int]) -> None:
    raw = b": keep-alive\r\n\r\nevent: x\r\ndata: 1\r\ndata:2\r\n\r\nid: 4\r\n\r\ndata: 3\r\n\r\n"
    parser = EventParser()
    assert [e for piece in split(raw, cuts) for e in parser.feed(piece)] == [b"1\n2", b"3"]


def test_an_event_without_end() -> None:
    parser = EventParser()
    parser.feed(b"x" * (8 << 20))
    with pytest.raises(ProtocolError):
        parser.feed(b"x" * (9 << 20))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"no such model","code":404}}', "no such model"),
        (b'{"error":"plain"}', "plain"),
        (b'{"object":"error","message":"as vLLM once said it"}', "as vLLM once said it"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["body"]}]}', '{"detail":[{"loc":["body"]}]}'),
        (b"\xff\x1b[31m two\nlines", "\ufffd [31m two lines"),
        (b"", ""),
        (b"x" * 5000, "x" * 300),
    ],
)
def test_the_reason_in_an_error(body: bytes, said: str) -> None:
    assert reason_in(body) == said
