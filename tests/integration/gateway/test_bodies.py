"""Large bodies: what waits for its answer is bounded in bytes, for each key and over all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.fake_engine import STREAM_HEAD, Call, FakeEngine, answer_chat, delta, event
from tests.support.gateway import KEY, Running, gateway, idle, until, write_key

LARGE = 100_000
LIMITS = {"body_bytes": 150_000, "bodies_bytes": 440_000}
REASON = 'llm_gateway_rate_limited_total{key="%s",reason="key_body_bytes"}'


@contextlib.asynccontextmanager
async def three_keys(tmp_path: Path, engine: FakeEngine, **more: Any) -> AsyncIterator[Running]:
    """Keys ``team``, ``b`` and ``c``, of which each may have one large body and all may have four."""
    for name in ("b", "c", "d", "e"):
        write_key(tmp_path / "keys.d", name, f"key-{name}")
    write_key(tmp_path / "keys.d", "team")
    async with gateway(tmp_path, engine.url, limits=LIMITS, **more) as running:
        yield running


async def sending(
    running: Running, key: str, size: int = LARGE, chunked: bool = False
) -> asyncio.StreamWriter:
    """A connection whose request has begun and does not go on."""
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{framing}\r\n\r\n"
    )
    writer.write(head.encode() + (b"%x\r\n%b\r\n" % (size, b" " * size) if chunked else b""))
    return writer


async def large(running: Running, key: str = KEY, **body: Any) -> tuple[int, str]:
    """Status of a large request, and its error."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "x" * LARGE}], **body}
    response = await running.ask("/v1/chat/completions", asked, key)
    return response.status, (await response.json()).get("error", {}).get("code", "")


async def held(running: Running, size: int) -> None:
    """Wait until so many bytes are counted."""
    inference = running.gateway._inference
    assert inference is not None
    await until(lambda: inference._bodies._held == size)


async def test_what_is_still_on_its_way_counts_for_its_key_and_no_other(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, three_keys(tmp_path, engine) as running:
        for chunked in (False, True):
            writer = await sending(running, KEY, chunked=chunked)
            await held(running, LARGE)
            assert await large(running) == (429, "rate_limit_exceeded")
            assert (await running.chat()).status == 200
            assert await large(running, "key-b") == (200, "")
            writer.close()
            await held(running, 0)
            assert await large(running) == (200, "")
        assert (await running.metrics())[REASON % "team"] == 2
        await until(lambda: idle(running))


async def test_all_keys_together_have_a_bound(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, three_keys(tmp_path, engine) as running:
        writers = [await sending(running, f"key-{name}") for name in "bcde"]
        await held(running, 4 * LARGE)
        assert await large(running) == (503, "queue_full")
        assert (await running.chat()).status == 200
        for writer in writers:
            writer.close()
        await held(running, 0)
        assert await large(running) == (200, "")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_small_body_does_not_count_however_it_comes(tmp_path: Path, chunked: bool) -> None:
    async with FakeEngine(answer_chat) as engine, three_keys(tmp_path, engine) as running:
        writers = [await sending(running, f"key-{name}", 110_000) for name in "bcde"]
        await held(running, 440_000)
        body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: %b\r\n"
        writer.write(head % KEY.encode() + framing + b"\r\n\r\n")
        inference = running.gateway._inference
        assert inference is not None
        await until(lambda: len(inference.active) == 5)
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        assert inference._bodies._held == 440_000
        for each in (writer, *writers):
            each.close()
        await held(running, 0)
        assert not inference._bodies._of


async def test_a_body_counts_until_its_answer_begins(tmp_path: Path) -> None:
    asked, begin, end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        if not call.json.get("stream"):
            await answer_chat(call)
            return
        asked.set()
        await begin.wait()
        await call.send(STREAM_HEAD)
        await call.send_event(delta("a"))
        await end.wait()
        await call.send(event("[DONE]") + b"0\r\n\r\n")

    async with FakeEngine(script) as engine, three_keys(tmp_path, engine) as running:
        messages = [{"role": "user", "content": "x" * LARGE}]
        async with asyncio.TaskGroup() as tasks:

            async def streamed() -> None:
                async with running.streaming(messages=messages) as response:
                    assert b"[DONE]" in await response.read()

            tasks.create_task(streamed())
            await asked.wait()
            assert (await large(running))[0] == 429
            begin.set()
            await held(running, 0)
            inference = running.gateway._inference
            assert inference is not None
            assert [exchange.asked.body for exchange in inference.active if exchange.asked] == [b""]
            assert (await large(running))[0] == 200
            end.set()


async def test_a_refused_body_leaves_its_connection_and_its_line_in_order(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, three_keys(tmp_path, engine) as running:
        writer = await sending(running, KEY)
        await held(running, LARGE)
        with capture_logs() as lines:
            said = await running.raw(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
                b"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n" % KEY.encode()
            )
        assert said.startswith(b"HTTP/1.1 429")
        assert b"100 Continue" not in said
        assert b"Retry-After: 1\r\n" in said
        assert not [line for line in lines if line["event"] == "unhandled error"]
        writer.close()
