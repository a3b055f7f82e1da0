"""A gateway that stops: what is on its way ends well, and nobody is refused."""

import asyncio
from pathlib import Path

import pytest

from daemons.gateway.api import server
from tests.support.fake_engine import FakeEngine, HeldStream
from tests.support.gateway import KEY, gateway, until


async def test_a_drain_lets_a_stream_finish_and_refuses_nobody(tmp_path: Path) -> None:
    held = HeldStream()
    async with (
        FakeEngine(held) as engine,
        gateway(tmp_path, engine.url) as running,
    ):
        async with running.streaming() as response:
            await response.content.readuntil(b"\n\n")
            stopping = asyncio.create_task(running.gateway.stop())
            await until(
                lambda: running.gateway._inference is not None and running.gateway._inference.draining
            )
            held.go_on.set()
            assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
        await stopping


async def test_a_connection_is_not_closed_under_the_next_request_of_a_client_that_was_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that began before the drain ends with its connection open: its head announced nothing else."""
    # A client on a busy machine needs longer for its next request than it would be given.
    monkeypatch.setattr(server, "_IDLE_SECONDS", 60.0)
    held = HeldStream()
    async with FakeEngine(held) as engine, gateway(tmp_path, engine.url) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)

        def ask(stream: str) -> bytes:
            body = b'{"model":"m","messages":[],"stream":%b}' % stream.encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
            return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body

        writer.write(ask("true"))
        assert b"Connection: close" not in await reader.readuntil(b"\r\n\r\n")
        stopping = asyncio.create_task(running.gateway.stop())
        await until(lambda: running.gateway._inference is not None and running.gateway._inference.draining)
        held.go_on.set()
        await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(ask("false"))
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"Connection: close" in answer
        writer.close()
        await stopping


async def test_who_still_waits_at_the_end_of_a_drain_is_told_to_come_back(tmp_path: Path) -> None:
    held = HeldStream()
    async with FakeEngine(held) as engine:
        one = {"name": "e", "url": engine.url, "models": ["m"], "max_in_flight": 1}
        async with gateway(tmp_path, engine.url, engines=[one], timeouts={"drain": 0.3}) as running:
            stream = asyncio.create_task(running.chat(stream=True))
            await until(lambda: engine.calls)
            waiting = asyncio.create_task(running.chat())
            await until(lambda: sum(running.gateway._admission.waiting("m").values()) == 1)
            await running.gateway.stop()
            refused = await waiting
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            assert (await refused.json())["error"]["code"] == "shutting_down"
            assert '"shutting_down"' in await (await stream).text()
            assert len(engine.calls) == 1
