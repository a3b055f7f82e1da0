"""Requests that have ended leave no object behind, not even one for the collector of cycles."""

import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fake_engine import FakeEngine, answer_chat
from tests.support.gateway import KEY, Running, gateway, until

_TIMES = 25
_CLOSED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nConnection: close\r\n\r\n"


async def _plain(running: Running) -> None:
    assert (await running.chat()).status == 200


async def _streamed(running: Running) -> None:
    async with running.streaming() as response:
        assert b"[DONE]" in await response.read()


async def _refused(running: Running) -> None:
    assert (await running.chat(model="unknown")).status == 404


async def _closed(running: Running) -> None:
    assert (await running.raw(_CLOSED % KEY.encode())).startswith(b"HTTP/1.1 200")


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _objects() -> Counter[str]:
    """The gateway's objects, by type."""
    kinds = (type(found) for found in gc.get_objects())
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith("daemons.gateway"))


@pytest.mark.parametrize("ask", [_plain, _streamed, _refused, _closed])
async def test_what_has_ended_leaves_no_object_behind(
    tmp_path: Path, no_collector: None, ask: Callable[[Running], Awaitable[None]]
) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        await ask(running)
        before = _objects()
        for _ in range(_TIMES):
            await ask(running)
        # What a look at the engine needs for a moment may be among those before.
        await until(lambda: _objects() <= before)


async def test_an_idle_connection_keeps_nothing_of_its_request(tmp_path: Path, no_collector: None) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        for ask in (_plain, _streamed):
            await ask(running)
            await until(lambda: not _objects()["Arrival"])
        assert _objects()["ClientConnection"] == 1
