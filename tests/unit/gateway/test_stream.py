"""A stream from the engine's bytes to the client's: however they are cut, and whichever way they take."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.errors import ErrorCode
from daemons.gateway.metrics import Series
from daemons.gateway.relay.http1 import ChunkedBody
from daemons.gateway.relay.relay import Patience, Relay
from daemons.gateway.relay.sse import EventFilter, OpenAIFilter
from daemons.gateway.relay.stream import StreamRelay
from daemons.gateway.relay.upstream import EngineConnection, Outbox
from daemons.gateway.relay.usage import TokenCounts
from tests.unit.gateway.test_http1 import split
from tests.unit.gateway.test_sse import _event, cuts

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
START = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":'
PATIENCE = Patience(first_byte=10, between_chunks=10, total=100, keep_alive=15)


class _Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write: Callable[[bytes], None] = self.written.append
        self.reads = True
        self.protocol: asyncio.Protocol

    def abort(self) -> None:
        """Nothing to cut."""

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def receives(self, data: bytes) -> None:
        """`data` comes off the wire."""
        self.protocol.data_received(data)

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class _Client:
    def __init__(self) -> None:
        self.sent = _Transport()
        self.transport: asyncio.Transport | None = cast("asyncio.Transport", self.sent)


class _Home:
    def release(self, connection: EngineConnection) -> None:
        """Nobody uses it again."""

    def forget(self, connection: EngineConnection) -> None:
        """Nobody kept it."""


def connected(engine: _Transport, outbox: Outbox | None = None) -> EngineConnection:
    """A connection to an engine."""
    connection = EngineConnection(_Home(), outbox or Outbox())
    engine.set_protocol(connection)
    connection.connection_made(cast("asyncio.Transport", engine))
    return connection


def _chunks(events: list[bytes]) -> list[bytes]:
    return [b"%x\r\n%b\r\n" % (len(event), event) for event in events]


def _plain_filter() -> EventFilter:
    return OpenAIFilter(keep_final=False, keep_all=False)


def streamed(client: _Client, series: Series, make: Callable[[], EventFilter] = _plain_filter) -> StreamRelay:
    """A relay of a stream."""
    return StreamRelay(
        client,
        fields=b"",
        patience=PATIENCE,
        observer=series,
        events=make,
        error_event=lambda code: b"data: %b\n\n" % code.value.encode(),
        chunked=True,
    )


def relayed(
    pieces: list[bytes],
    make: Callable[[], EventFilter] = _plain_filter,
) -> tuple[bytes, StreamRelay]:
    """What a client gets of an answer that arrives in `pieces`, its framing removed."""

    async def run() -> tuple[bytes, StreamRelay]:
        client, engine = _Client(), _Transport()
        relay = streamed(client, Series(), make)
        relay.begin(connected(engine), b"")
        for piece in (HEAD, *pieces):
            engine.receives(piece)
        written = b"".join(client.sent.written)
        assert relay.bytes_out == len(written)
        body = ChunkedBody()
        return body.feed(written.partition(b"\r\n\r\n")[2]), relay

    return asyncio.run(run())


async def test_gaps_are_those_of_the_engine_and_none_is_lost() -> None:
    client, series, engine = _Client(), Series(), _Transport()
    relay = streamed(client, series)
    relay.begin(connected(engine), b"")
    engine.receives(HEAD)
    (piece,) = _chunks([START + b'"a"}}],"usage":{"completion_tokens":1}}\n\n'])

    def counted() -> float:
        return series.inter_token.buckets()[-1][1]

    for _ in range(5):
        engine.receives(piece)
    assert counted() == 4
    engine.receives(piece)
    before = series.inter_token.total
    relay.client_paused()
    await asyncio.sleep(0.05)
    resumed = monotonic()
    relay.client_resumed()
    engine.receives(piece)
    assert counted() == 6
    # Of the pause it has nothing, however long the machine took for the rest.
    assert series.inter_token.total - before <= monotonic() - resumed


def plain(client: _Client) -> Relay:
    """A relay of an answer that is no stream."""
    return Relay(client, fields=b"", patience=PATIENCE, observer=Series(), chunked=True)


async def test_a_client_that_cannot_take_the_last_piece_stops_nobody_elses_answer() -> None:
    client, engine = _Client(), _Transport()
    relay = plain(client)
    paused_while_sending: list[bool] = []

    def write(_: bytes) -> None:
        relay.client_paused()
        paused_while_sending.append(not engine.reads)

    client.sent.write = write
    relay.begin(connected(engine), b"")
    body = b"x" * 300_000
    engine.receives(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body[:1000])
    engine.receives(body[1000:])
    assert paused_while_sending[0]
    assert relay.answered
    assert engine.reads


async def test_an_answer_to_a_client_that_has_the_one_before_to_read_waits() -> None:
    client, engine = _Client(), _Transport()
    relay = plain(client)
    relay.client_paused()
    relay.begin(connected(engine), b"")
    assert not engine.reads
    relay.client_resumed()
    assert engine.reads


FLAT = '{"prompt_tokens":9,"total_tokens":10,"completion_tokens":%(n)d}'
NESTED = '{"prompt_tokens":9,"completion_tokens":%(n)d,"prompt_tokens_details":{"cached_tokens":3}}'
usages = st.sampled_from([FLAT, FLAT, FLAT, NESTED])
texts = st.sampled_from(
    [
        '" token"',
        '""',
        '"a\\n\\nb"',
        '"}}"',
        '"\\",\\"usage\\":{\\"a\\":1}"',
        '"\u00e9"',
        '"' + "long" * 1100 + '"',
    ]
)
tails = st.sampled_from(["", "", "", ',"x":{"y":1}', ',"x":1'])
begins = st.sampled_from(
    [START, START, START, b'data:{"choices":[{"d":{"content":', b': note\ndata: {"choices":[{"a":{"b":']
)
events = st.lists(st.tuples(begins, texts, usages, tails), max_size=12)


@given(events, st.booleans(), cuts)
def test_whole_chunks_and_pieces_of_any_size_give_the_client_the_same(
    given_events: list[tuple[bytes, str, str, str]], final: bool, places: list[int]
) -> None:
    sent, expected, last = [], b"", TokenCounts(9, 0, 0)
    for count, (begin, text, usage, tail) in enumerate(given_events):
        start, end = begin + text.encode() + b"}}]", tail.encode() + b"}\n\n"
        tokens = count**3  # more digits every few events
        sent.append(start + b',"usage":' + usage.encode() % {b"n": tokens} + end)
        expected += start + end
        last = TokenCounts(9, 3 if usage is NESTED else 0, tokens)
    if final:
        sent.append(
            _event({"id": "x", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 99}})
        )
        last = TokenCounts(9, 0, 99)
    whole = _chunks([*sent, b"data: [DONE]\n\n"])
    expected += b"data: [DONE]\n\n"
    several = [b"".join(whole[at : at + 3]) for at in range(0, len(whole), 3)]
    for pieces in (whole, several, split(b"".join(whole), places)):
        got, relay = relayed([*pieces, b"0\r\n\r\n"])
        assert got == expected
        assert relay.failure is None
        if sent:
            assert relay.usage() == last


def test_each_event_without_a_choice_is_left_out() -> None:
    sent = [START + b'"a"}}],"usage":{"completion_tokens":1}}\n\n']
    sent += [b'data: {"id":"x","choices":[],"usage":{"completion_tokens":1}}\n\n'] * 3
    got, _ = relayed([*_chunks([*sent, b"data: [DONE]\n\n"]), b"0\r\n\r\n"])
    assert got == START + b'"a"}}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("count", [16, 17, 20_000])
async def test_interim_responses_are_passed_over_and_bounded(count: int, together: bool) -> None:
    client, engine = _Client(), _Transport()
    relay = streamed(client, Series())
    relay.begin(connected(engine), b"")
    interim = [b"HTTP/1.1 103 \r\n\r\n"] * count
    for piece in [b"".join(interim)] if together else interim:
        engine.receives(piece)
    assert relay.failure is (None if count == 16 else ErrorCode.ENGINE_PROTOCOL_ERROR)
    assert relay.detail == ("" if count == 16 else "too many interim responses")
    if count == 16:
        engine.receives(HEAD)
        assert relay.head is not None
        assert relay.head.status == 200


@pytest.mark.parametrize("off", [-1, 1, 16])
@pytest.mark.parametrize("text", ["a", "a" * 193])
def test_a_chunk_of_another_size_than_it_says_ends_the_stream_with_an_error(off: int, text: str) -> None:
    """Also where no chunk has that length, as 255 octets that are said to be 256."""
    told = [{"choices": [{"t": text}], "usage": {"completion_tokens": n}} for n in range(3)]
    chunks = _chunks([*map(_event, told), b"data: [DONE]\n\n"])
    size, _, rest = chunks[1].partition(b"\r\n")
    chunks[1] = b"%x\r\n%b" % (int(size, 16) + off, rest)
    got, relay = relayed([*chunks, b"0\r\n\r\n"])
    assert relay.failure is ErrorCode.ENGINE_PROTOCOL_ERROR
    assert got.endswith(b"data: engine_protocol_error\n\n")
    assert b"[DONE]" not in got


@pytest.mark.parametrize("rest", [b"", b"0\r\n", b"xyz\r\n"])
async def test_an_answer_that_was_whole_before_its_connection_broke_has_not_failed(rest: bytes) -> None:
    client, engine = _Client(), _Transport()
    relay = streamed(client, Series())
    relay.begin(connected(engine), b"")
    whole = b"".join(_chunks([START + b'"a"}}]}\n\n', b"data: [DONE]\n\n"]))
    engine.receives(HEAD + whole)
    if rest:
        engine.receives(rest)
    engine.protocol.connection_lost(ConnectionResetError())
    assert relay.failure is None
    written = b"".join(client.sent.written)
    assert written.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert written.count(b"[DONE]") == 1


async def test_requests_of_one_moment_leave_together_in_their_order() -> None:
    outbox, order = Outbox(lambda: 1.0), list[bytes]()
    begun = [_begun(outbox, order, b"%d" % number) for number in range(3)]
    begun[1].abandon()
    assert not order
    await asyncio.sleep(0)
    assert order == [b"0", b"2"]
    assert all(relay.sent_at for relay in begun)
    # The next moment is another one.
    _begun(outbox, order, b"3")
    await asyncio.sleep(0)
    assert order == [b"0", b"2", b"3"]


async def test_a_request_does_not_wait_for_ever_for_others() -> None:
    now, order = [1.0], list[bytes]()
    outbox = Outbox(lambda: now[0])
    _begun(outbox, order, b"first")
    now[0] += 0.0004
    _begun(outbox, order, b"second")
    assert not order
    now[0] += 0.0002
    _begun(outbox, order, b"third")
    assert order == [b"first", b"second", b"third"]


async def test_a_connection_closed_before_its_request_left_is_lost_and_no_other() -> None:
    outbox, order = Outbox(lambda: 1.0), list[bytes]()

    def closed(_: bytes) -> None:
        raise RuntimeError("the handler is closed")

    first, engine = streamed(_Client(), Series()), _Transport()
    engine.write = closed
    first.begin(connected(engine, outbox), b"first")
    second = _begun(outbox, order, b"second")
    await asyncio.sleep(0)
    assert first.failure is ErrorCode.ENGINE_LOST
    assert second.failure is None
    assert order == [b"second"]


async def test_what_comes_before_the_request_left_is_not_its_answer() -> None:
    client, engine = _Client(), _Transport()
    relay = streamed(client, Series())
    relay.begin(connected(engine), b"request")
    engine.receives(HEAD + b"".join(_chunks([b"data: [DONE]\n\n"])) + b"0\r\n\r\n")
    assert relay.failure is ErrorCode.ENGINE_LOST
    await asyncio.sleep(0)
    assert not engine.written
    assert not client.sent.written


def _begun(outbox: Outbox, order: list[bytes], request: bytes) -> StreamRelay:
    """The relay of a request that is about to leave."""
    engine, relay = _Transport(), streamed(_Client(), Series())
    engine.write = order.append
    relay.begin(connected(engine, outbox), request)
    return relay
