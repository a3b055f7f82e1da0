"""The event filters: any split gives the same stream, any truncation shows, removal is byte-exact."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.relay import sse
from daemons.gateway.relay.choices import ChoicesFilter
from daemons.gateway.relay.sse import EventFilter, OpenAIFilter, UsageScan
from daemons.gateway.relay.usage import TokenCounts, read_usage
from tests.unit.gateway.test_http1 import split

texts = st.text(max_size=30) | st.sampled_from(
    ['","usage":{"a":1}', "\n\n", "data: [DONE]\n\n", '"choices":[]']
)


def _usage(count: int) -> dict[str, object]:
    details = {"prompt_tokens_details": {"cached_tokens": 3}}
    return {"prompt_tokens": 9, "total_tokens": 9 + count, "completion_tokens": count, **details}


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _stream(pieces: list[str], *, final: bool, each: bool) -> bytes:
    out = b""
    for count, text in enumerate(pieces):
        event: dict[str, object] = {"id": "x", "choices": [{"index": 0, "delta": {"content": text}}]}
        out += _event(event | ({"usage": _usage(count)} if each else {}))
    if final:
        out += _event({"id": "x", "choices": [], "usage": _usage(len(pieces))})
    return out + b"data: [DONE]\n\n"


cuts = st.lists(st.integers(min_value=0, max_value=20000), max_size=60)


@given(st.lists(texts, max_size=12), cuts, st.sampled_from([(False, False), (True, False), (True, True)]))
def test_the_client_gets_what_its_own_options_give(
    pieces: list[str], places: list[int], kept: tuple[bool, bool]
) -> None:
    made = OpenAIFilter(keep_final=kept[0], keep_all=kept[1])
    full = _stream(pieces, final=True, each=True)
    got = b"".join(made.feed(piece) for piece in split(full, places))
    assert got == _stream(pieces, final=kept[0], each=kept[1])
    assert made.complete
    assert made.usage() == TokenCounts(9, 3, len(pieces))


@given(st.lists(texts, min_size=1, max_size=6), st.integers(min_value=0, max_value=20000), cuts)
def test_a_truncated_stream_is_never_complete(pieces: list[str], cut: int, places: list[int]) -> None:
    made = OpenAIFilter(keep_final=True, keep_all=True)
    full = _stream(pieces, final=True, each=True)
    whole = full[: cut % len(full)]
    got = b"".join(made.feed(piece) for piece in split(whole, places))
    assert not made.complete
    assert whole.startswith(got)
    assert not got or got.endswith(b"\n\n")


@given(st.binary(max_size=300), cuts)
def test_any_bytes_split_anyhow_give_the_same(data: bytes, places: list[int]) -> None:
    whole, parts = (
        OpenAIFilter(keep_final=False, keep_all=False),
        OpenAIFilter(keep_final=False, keep_all=False),
    )
    once = whole.feed(data)
    assert b"".join(parts.feed(piece) for piece in split(data, places)) == once
    assert (parts.complete, parts.error, parts.events) == (whole.complete, whole.error, whole.events)


@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(0, 8), max_size=30), cuts, st.booleans())
def test_several_answers_are_counted_together_even_when_cut_short(
    answers: int, prompts: int, order: list[int], places: list[int], whole: bool
) -> None:
    """Each event tells what its own answer used; a client that leaves before the end is billed for all."""
    counts: dict[int, int] = {}
    stream = b""
    for index in (index % (answers * prompts) for index in order):
        counts[index] = counts.get(index, 0) + 1
        choice = {"index": index, "delta": {"content": "x"}}
        stream += _event({"id": "x", "choices": [choice], "usage": _usage(counts[index])})
    if whole:
        stream += _event({"id": "x", "choices": [], "usage": _usage(99)}) + b"data: [DONE]\n\n"
    made = ChoicesFilter(keep_final=False, keep_all=False, answers=answers)
    out = b"".join(made.feed(piece) for piece in split(stream, places))
    assert b"usage" not in out
    asked = len({index // answers for index in counts})
    if whole:
        assert made.usage() == TokenCounts(9, 3, 99)
    elif counts:
        assert made.usage() == TokenCounts(9 * asked, 3 * asked, sum(counts.values()))
    else:
        assert made.usage() is None


def test_a_response_cut_short_is_counted_by_its_pieces() -> None:
    made = sse.responses_filter()
    made.feed(b'event: response.created\ndata: {"response":{"usage":null}}\n\n')
    assert made.usage() is None
    made.feed(b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n' * 3)
    assert made.usage() == TokenCounts(0, 0, 3)


def test_a_response_that_repeats_its_tools_is_not_billed_by_their_schemas() -> None:
    made = sse.responses_filter()
    tool = b'{"parameters":{"properties":{"usage":{"input_tokens":1,"output_tokens":0}}}}'
    made.feed(b'event: response.created\ndata: {"response":{"tools":[%b],"usage":null}}\n\n' % tool)
    made.feed(b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n' * 3)
    assert made.usage() == TokenCounts(0, 0, 3)
    made.feed(
        b'event: response.completed\ndata: {"response":{"tools":[%b],"usage":{"input_tokens":50,'
        b'"output_tokens":4}}}\n\n' % tool
    )
    assert made.usage() == TokenCounts(50, 0, 4)


def test_after_an_error_nothing_looks_like_an_end() -> None:
    made = OpenAIFilter(keep_final=False, keep_all=False)
    assert made.feed(_event({"error": {"message": "gone"}}) + b"data: [DONE]\n\n") == b""
    assert made.error is not None
    assert not made.complete


@pytest.mark.parametrize(
    ("make", "last"),
    [
        (sse.messages_filter, b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        (
            sse.responses_filter,
            b'event: response.completed\ndata: {"usage":{"input_tokens":5,"output_tokens":2}}\n\n',
        ),
    ],
)
def test_named_streams_end_with_their_own_event(make: Callable[[], EventFilter], last: bytes) -> None:
    start = b'event: message_start\ndata: {"message":{"usage":{"input_tokens":5,"output_tokens":0}}}\n\n'
    body = start + b'event: content_block_delta\ndata: {"delta":{"text":"a"}}\n\n' * 2
    stop = b'event: message_delta\ndata: {"usage":{"input_tokens":5,"output_tokens":2}}\n\n'
    made = make()
    assert made.feed(body) == body
    assert not made.complete
    made.feed(stop + last)
    assert made.complete
    assert made.usage() == TokenCounts(5, 0, 2)


def test_a_message_cut_short_is_counted_by_its_pieces() -> None:
    made = sse.messages_filter()
    made.feed(b'event: message_start\ndata: {"message":{"usage":{"input_tokens":5,"output_tokens":0}}}\n\n')
    made.feed(b'event: content_block_delta\ndata: {"delta":{"text":"a"}}\n\n' * 3)
    assert made.usage() == TokenCounts(5, 0, 3)


@given(st.text(max_size=200), cuts)
def test_usage_is_found_in_a_body_that_passes_in_pieces(text: str, places: list[int]) -> None:
    body = json.dumps(
        {"choices": [{"message": {"content": text}}], "usage": _usage(4), "prompt_logprobs": None}
    )
    scan = UsageScan()
    for piece in split(body.replace(": ", ":").encode(), places):
        scan.feed(piece)
    assert scan.usage() == TokenCounts(9, 3, 4)


def test_no_usage_is_no_usage() -> None:
    assert read_usage(b'{"prompt_tokens":"x"}') is None
    assert UsageScan().usage() is None
