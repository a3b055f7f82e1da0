"""The first stage of a request."""

import asyncio
from unittest import mock

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict, CIMultiDictProxy

from daemons.gateway.api.accept import body_at_hand
from daemons.gateway.errors import ApiError

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
