"""What keeps others waiting: engines that fall silent, long prefills, clients that do not read."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest

from daemons.gateway.pool.connections import Dialer
from tests.support.fake_engine import STREAM_HEAD, Call, FakeEngine, answer_chat, chunk, delta, event
from tests.support.gateway import KEY, Running, gateway, idle, until


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


async def _slow_reader(running: Running, *, stream: bool) -> asyncio.StreamWriter:
    """A client that has asked and does not read."""
    _, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
    body = json.dumps({"model": "m", "messages": [], "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return writer


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
        writer = await _slow_reader(running, stream=True)
        await asyncio.wait_for(gone.wait(), 20)
        # Kernel buffers on both legs and one of ours; endless without backpressure.
        assert sent < 40_000_000
        await until(lambda: idle(running))
        writer.close()
        await _counted(running, "client_stalled")


async def _counted(running: Running, outcome: str) -> None:
    """Exactly one request has ended so, and none in another way."""
    samples = await running.metrics()
    named = {name: value for name, value in samples.items() if name.startswith("llm_gateway_requests_total")}
    assert sum(named.values()) == 1
    (found,) = (name for name, value in named.items() if value)
    assert f'outcome="{outcome}"' in found


async def test_a_slow_reader_of_an_answer_in_one_piece_is_dropped(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        try:
            while True:
                await call.send(chunk(b" " * 100_000))
        except ConnectionError:
            gone.set()

    async with (
        FakeEngine(script) as engine,
        gateway(tmp_path, engine.url, timeouts={"stalled_reader": 0.5}) as running,
    ):
        writer = await _slow_reader(running, stream=False)
        await asyncio.wait_for(gone.wait(), 20)
        await until(lambda: idle(running))
        writer.close()
        await _counted(running, "client_stalled")


@pytest.mark.parametrize(
    ("timeouts", "stream", "word"),
    [
        ({"first_byte": {"default": 0.3}, "keep_alive": 5}, True, "engine_timeout"),
        ({"total": 0.3}, True, "total_timeout"),
        ({"total": 0.3}, False, "total_timeout"),
    ],
)
async def test_an_engine_that_does_not_answer_in_time_is_left(
    tmp_path: Path, timeouts: dict[str, object], stream: bool, word: str
) -> None:
    gone = asyncio.Event()

    async def script(call: Call) -> None:
        await call.gone()
        gone.set()

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url, timeouts=timeouts) as running:
        response = await running.chat(stream=stream)
        assert response.status == 504
        assert (await response.json())["error"]["code"] == word
        await asyncio.wait_for(gone.wait(), 10)
        await _counted(running, word)
        assert len(engine.calls) == 1


async def test_a_connection_that_nobody_takes_is_not_waited_for() -> None:
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            # Once its backlog is taken the kernel leaves whoever else comes without an answer.
            other = sockets.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        async with asyncio.timeout(10):
            with pytest.raises(TimeoutError):
                await Dialer(f"http://127.0.0.1:{full.getsockname()[1]}", None, 0.2).open()


async def test_comments_begin_only_once_a_request_has_its_place(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await go_on.wait()
        await answer_chat(call)

    async with FakeEngine(script) as engine:
        one = {"name": "e", "url": engine.url, "models": ["m"], "max_in_flight": 1}
        async with gateway(
            tmp_path,
            engine.url,
            engines=[one],
            timeouts={"keep_alive": 0.1},
            queue={"deadlines": {"default": 0.6}},
        ) as running:
            first = asyncio.create_task(running.chat())
            await until(lambda: engine.calls)
            waited = await running.chat(stream=True)
            assert waited.status == 503
            assert (await waited.json())["error"]["code"] == "queue_timeout"
            go_on.set()
            assert (await first).status == 200
