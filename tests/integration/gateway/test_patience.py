"""What keeps others waiting: engines that fall silent, long prefills, clients that do not read."""

import asyncio
import json
from pathlib import Path

from tests.support.fake_engine import STREAM_HEAD, Call, FakeEngine, answer_chat, chunk, delta, event
from tests.support.gateway import KEY, gateway, idle, until


async def test_an_engine_that_falls_silent_is_cut(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD)
        await call.send_event(delta("a"))
        # Comments are no progress: vLLM goes on with them while its engine hangs.
        task = asyncio.create_task(_comments(call))
        await call.gone()
        task.cancel()
        gone.set()

    async def _comments(call: Call) -> None:
        while True:
            await call.send(chunk(b": ping\n\n"))
            await asyncio.sleep(0.02)

    async with (
        FakeEngine(script) as engine,
        gateway(tmp_path, engine.url, timeouts={"between_chunks": 0.3}) as running,
    ):
        response = await running.chat(stream=True)
        assert '"engine_stalled"' in (await response.text())
        await asyncio.wait_for(gone.wait(), 10)


async def test_a_long_prefill_is_bridged_with_comments_and_a_late_refusal_becomes_an_event(
    tmp_path: Path,
) -> None:
    bridged = asyncio.Event()

    async def script(call: Call) -> None:
        await bridged.wait()
        if call.json.get("temperature") == 2:
            await call.send_json({"error": {"message": "maximum context length is 9"}}, 400)
        else:
            await answer_chat(call)

    async with (
        FakeEngine(script) as engine,
        gateway(tmp_path, engine.url, timeouts={"keep_alive": 0.1}) as running,
    ):

        async def after_a_comment(**body: object) -> str:
            bridged.clear()
            async with running.streaming(**body) as response:
                assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"
                bridged.set()
                return (await response.read()).decode()

        assert (await after_a_comment()).endswith("data: [DONE]\n\n")
        bad = await after_a_comment(temperature=2)
        assert '"context_length_exceeded"' in bad
        assert "[DONE]" not in bad


async def test_a_slow_reader_pauses_the_engine_and_is_dropped(tmp_path: Path) -> None:
    gone = asyncio.Event()
    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.send(STREAM_HEAD)
        piece = event(delta("x" * 8000))
        try:
            while True:
                await call.send(piece)
                sent += len(piece)
        except ConnectionError:
            gone.set()

    async with (
        FakeEngine(script) as engine,
        gateway(tmp_path, engine.url, timeouts={"stalled_reader": 0.5}) as running,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
        body = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.wait_for(gone.wait(), 20)
        # Kernel buffers on both legs and one of ours; endless without backpressure.
        assert sent < 40_000_000
        await until(lambda: idle(running))
        writer.close()
