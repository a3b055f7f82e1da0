"""What the official clients make of failures: which they raise, which they try again, what they leave."""

import asyncio
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.support.fake_engine import STREAM_HEAD, Call, FakeEngine, answer_chat, chunk, delta
from tests.support.gateway import KEY, Running, gateway, until, write_key

pytestmark = pytest.mark.sdks

HELLO: Any = [{"role": "user", "content": "Say hello."}]
STARTED = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"x","type":"message",'
    b'"role":"assistant","model":"m","content":[],"usage":{"input_tokens":5,"output_tokens":0}}}\n\n'
)


def _openai(running: Running, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, **more)


def _anthropic(running: Running, **more: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=running.url, api_key=KEY, **more)


async def test_a_busy_engine_is_asked_again_after_as_long_as_it_was_told(tmp_path: Path) -> None:
    times: list[float] = []

    async def busy_once(call: Call) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            await call.send_json({"error": {"message": "The engine is currently busy"}}, 503)
        else:
            await answer_chat(call)

    async with FakeEngine(busy_once) as engine, gateway(tmp_path, engine.url) as running:
        async with _openai(running) as client:
            answer = await client.chat.completions.create(model="m", messages=HELLO)
        assert answer.choices[0].message.content == "Hello"
        # Retry-After is one second.
        assert times[1] - times[0] > 0.9


async def test_no_engine_and_too_many_requests_are_what_clients_call_them(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def wait(call: Call) -> None:
        await release.wait()
        await answer_chat(call)

    write_key(tmp_path / "keys.d", "team", limits={"concurrency": 1})
    async with FakeEngine(wait) as engine, gateway(tmp_path, engine.url) as running:  # noqa: SIM117
        async with _openai(running, max_retries=0) as one, _anthropic(running, max_retries=0) as two:
            first = asyncio.create_task(one.chat.completions.create(model="m", messages=HELLO))
            await until(lambda: engine.calls)
            with pytest.raises(openai.RateLimitError) as limited:
                await one.chat.completions.create(model="m", messages=HELLO)
            assert limited.value.code == "rate_limit_exceeded"
            with pytest.raises(anthropic.RateLimitError) as told:
                await two.messages.create(model="m", max_tokens=5, messages=HELLO)
            assert told.value.request_id
            release.set()
            await first
            engine.health = 503
            await until(lambda: not running.gateway.pool.ready(0))
            with pytest.raises(openai.InternalServerError) as gone:
                await one.chat.completions.create(model="m", messages=HELLO)
            assert gone.value.status_code == 503
            with pytest.raises(anthropic.APIStatusError) as overloaded:
                await two.messages.create(model="m", max_tokens=5, messages=HELLO)
            assert overloaded.value.status_code == 503


async def test_a_stream_that_breaks_raises(tmp_path: Path) -> None:
    async def lose(call: Call) -> None:
        await call.send(STREAM_HEAD)
        if call.path == "/v1/messages":
            await call.send(chunk(STARTED))
        else:
            await call.send_event(delta("a"))
        await asyncio.sleep(0.1)
        call.reset()

    async with FakeEngine(lose) as engine, gateway(tmp_path, engine.url) as running:
        async with _openai(running) as client:
            stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
            with pytest.raises(openai.APIError) as lost:
                async for _ in stream:
                    pass
            assert lost.value.code == "engine_lost"
        async with _anthropic(running) as two:
            with pytest.raises(anthropic.APIStatusError) as broken:
                async with two.messages.stream(model="m", max_tokens=5, messages=HELLO) as events:
                    await events.get_final_message()
            assert "connection to the engine was lost" in str(broken.value)


async def test_a_task_that_is_cancelled_frees_the_engine(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def hold(call: Call) -> None:
        await call.gone()
        gone.set()

    async with (
        FakeEngine(hold) as engine,
        gateway(tmp_path, engine.url) as running,
        _openai(running) as client,
    ):
        asking = asyncio.create_task(client.chat.completions.create(model="m", messages=HELLO))
        await until(lambda: engine.calls)
        asking.cancel()
        await asyncio.wait_for(gone.wait(), 20)


async def test_a_timeout_is_tried_again_and_every_attempt_is_given_up(tmp_path: Path) -> None:
    gone = 0

    async def hold(call: Call) -> None:
        nonlocal gone
        await call.gone()
        gone += 1

    async with FakeEngine(hold) as engine, gateway(tmp_path, engine.url) as running:
        async with _openai(running, timeout=2, max_retries=1) as client:
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(model="m", messages=HELLO)
        await until(lambda: gone == 2)
        assert len(engine.calls) == 2
