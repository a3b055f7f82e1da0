"""The first stage of a request."""

import asyncio
from unittest import mock

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from daemons.gateway.api.accept import body_at_hand, request_id
from daemons.gateway.errors import ApiError
from daemons.runtime.logs import redact

NO_HEADERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())


async def reader(*pieces: bytes) -> StreamReader:
    loop = asyncio.get_running_loop()
    content = StreamReader(mock.create_autospec(BaseProtocol, instance=True), 65536, loop=loop)
    for piece in pieces:
        content.feed_data(piece)
    return content


@pytest.mark.parametrize("pieces", [(b"{}",), (b"{", b"}"), (b"x" * 100_000,), (b"x" * 32768, b"y"), ()])
async def test_a_body_that_has_come_whole_is_taken_out_of_its_reader(pieces: tuple[bytes, ...]) -> None:
    content = await reader(*pieces)
    assert body_at_hand(NO_HEADERS, content, 200_000) is None
    content.feed_eof()
    assert body_at_hand(NO_HEADERS, content, 200_000) == b"".join(pieces)
    assert content.read_nowait() == b""


async def test_a_body_that_is_too_large_is_refused_however_it_came() -> None:
    for pieces in ((b"x" * 11,), (b"x" * 6, b"x" * 5)):
        content = await reader(*pieces)
        content.feed_eof()
        with pytest.raises(ApiError, match="larger than 10 bytes"):
            body_at_hand(NO_HEADERS, content, 10)


def named(given: str) -> str:
    """The identifier of a request whose client gives it one."""
    return request_id(CIMultiDictProxy(CIMultiDict({"X-Request-Id": given})))


@pytest.mark.parametrize("given", ["a", "4bf92f35-77b3", "task-1.2_B", "disk-123456", "a" * 128])
def test_a_clients_identifier_is_kept(given: str) -> None:
    assert named(given) == given


@given(st.text(alphabet="shkfSK-_.A1", max_size=140))
@example("sk-abcdef")
@example("x.SK-abcdef")
@example("a-" * 60 + "hf_abcdef")
def test_no_identifier_holds_what_the_log_would_redact(given: str) -> None:
    taken = named(given)
    assert redact(taken) == taken
