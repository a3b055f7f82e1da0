"""What requests leave behind: nothing that waits for the collector of cycles, which seldom comes."""

import asyncio
import gc
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from daemons.gateway.metrics import Series
from daemons.gateway.relay.relay import Patience, Relay
from daemons.gateway.relay.sse import OpenAIFilter
from daemons.gateway.relay.stream import StreamRelay
from daemons.gateway.relay.upstream import EngineConnection, Outbox
from tests.support.fake_engine import END, STREAM_HEAD, Call, FakeEngine, answer_chat, delta, event, usage
from tests.support.gateway import gateway, idle, until
from tests.support.ports import free_port

EVENT = event(delta("a", usage=usage(7, 1)))
ENDS = {"truncated": END, "framing": b"xyz\r\n", "error": event({"error": {}})}


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _alive() -> list[object]:
    return [o for o in gc.get_objects() if isinstance(o, EngineConnection | Relay)]


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize(
    ("how", "stream"),
    [
        *((how, False) for how in ("well", "reset", "framing", "refused", "left")),
        *((how, True) for how in ("well", "reset", "framing", "refused", "left", "truncated", "error")),
    ],
)
async def test_a_request_leaves_nothing_behind(tmp_path: Path, how: str, stream: bool) -> None:
    async def script(call: Call) -> None:
        if how == "well":
            await answer_chat(call)
        elif how == "refused":
            await call.send_json({"error": {"message": "no"}}, 400)
        else:
            await call.send(STREAM_HEAD + EVENT)
            await call.send(EVENT)
            await call.send(ENDS.get(how, b""))
            if how == "reset":
                call.reset()
            await call.gone()

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        asking = asyncio.create_task(running.chat(stream=stream))
        await until(lambda: engine.calls)
        if how == "left":
            asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: idle(running))
        await engine.stop()
        await until(lambda: not _alive())


@pytest.mark.usefixtures("_no_collector")
async def test_what_was_looked_at_on_its_way_is_not_kept(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await go_on.wait()
        await answer_chat(call)

    async with (
        FakeEngine(script) as engine,
        gateway(tmp_path, engine.url, timeouts={"keep_alive": 0.1}) as running,
    ):
        async with running.streaming() as response:
            # It comes of the look at what takes too long.
            assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"
            go_on.set()
            await response.read()
        await until(lambda: idle(running))
        await engine.stop()
        await until(lambda: not _alive())


class _Home:
    def release(self, connection: EngineConnection) -> None:
        """Nobody uses it again."""

    def forget(self, connection: EngineConnection) -> None:
        """Nobody kept it."""


def _connection() -> EngineConnection:
    return EngineConnection(_Home(), Outbox())


class _Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.lost.set_result(None)


def _relay(client: _Client) -> StreamRelay:
    return StreamRelay(
        client,
        fields=b"",
        patience=Patience(first_byte=10, between_chunks=10, total=100, keep_alive=15),
        observer=Series(),
        events=lambda: OpenAIFilter(keep_final=False, keep_all=False),
        error_event=lambda code: b"data: %b\n\n" % code.value.encode(),
        chunked=True,
    )


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("ends", ["lost", "broken", "abandoned"])
def test_a_lost_connection_is_freed_with_its_stream_and_transports(ends: str) -> None:
    async def run() -> list[weakref.ref[asyncio.BaseTransport]]:
        loop = asyncio.get_running_loop()
        engine, engine_here = socket.socketpair()
        reader, client_here = socket.socketpair()
        for sock in (engine, engine_here, reader, client_here):
            sock.setblocking(False)
        with engine, reader:
            there, client = await loop.create_connection(_Client, sock=client_here)
            client.transport = there
            made = loop.create_connection(_connection, sock=engine_here)
            here, connection = await made
            relay = _relay(client)
            done = relay.begin(connection, b"")
            got = b""
            for count, sent in ((1, STREAM_HEAD + EVENT), (2, EVENT)):
                await loop.sock_sendall(engine, sent)
                while got.count(b"\n\n") < count:
                    got += await loop.sock_recv(reader, 65536)
            assert here.get_protocol() is relay
            if ends == "abandoned":
                relay.abandon()
            else:
                if ends == "broken":
                    await loop.sock_sendall(engine, b"xyz\r\n")
                else:
                    engine.close()
                await done
            there.abort()
            await client.lost
            return [weakref.ref(here), weakref.ref(there)]

    async def check() -> None:
        refs = await run()
        await until(lambda: not any(ref() for ref in refs) and not _alive())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check())


@pytest.mark.usefixtures("_no_collector")
def test_a_connection_that_could_not_be_made_is_freed() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(
                lambda: EngineConnection(_Home(), Outbox()), "127.0.0.1", free_port()
            )
        assert not _alive()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
