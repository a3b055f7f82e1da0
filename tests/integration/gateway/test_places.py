"""Which engine a request gets, and how it waits for one."""

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import pytest

from tests.support.fake_engine import STREAM_HEAD, Call, FakeEngine, answer_chat, delta
from tests.support.gateway import gateway, idle, until, write_key


async def test_a_lost_engine_is_replaced_before_the_first_byte(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        call.reset()

    async with (
        FakeEngine(script) as bad,
        FakeEngine(answer_chat) as good,
        gateway(tmp_path, bad.url, good.url) as running,
    ):
        for _ in range(4):
            response = await running.chat(stream=True)
            assert response.status == 200
            assert "[DONE]" in await response.text()
        assert bad.calls
        assert idle(running)


async def test_a_place_that_a_retry_leaves_is_given_to_who_waits(tmp_path: Path) -> None:
    x_waits, all_seen = asyncio.Event(), asyncio.Event()

    async def busy_with_m(call: Call) -> None:
        if call.json["model"] == "x":
            await answer_chat(call)
            return
        await x_waits.wait()
        await call.send_json({}, 503)

    async def slow(call: Call) -> None:
        await all_seen.wait()
        await answer_chat(call)

    async with FakeEngine(busy_with_m) as one, FakeEngine(slow) as two:
        engines = [
            {"name": "one", "url": one.url, "models": ["m", "x"], "max_in_flight": 1},
            {"name": "two", "url": two.url, "models": ["m"], "max_in_flight": 2},
        ]
        async with gateway(tmp_path, one.url, engines=engines) as running:
            pool = running.gateway.pool
            held = [asyncio.create_task(running.chat()) for _ in range(2)]
            await until(lambda: all(engine.in_flight == 1 for engine in pool.engines))
            waiting = asyncio.create_task(running.chat(model="x"))
            await until(lambda: running.gateway._admission.waiting("x")["default"] == 1)
            x_waits.set()
            assert (await waiting).status == 200
            assert pool.engines[1].in_flight == 2
            all_seen.set()
            assert [response.status for response in await asyncio.gather(*held)] == [200, 200]


async def test_a_busy_engine_is_replaced_and_two_busy_ones_are_told(tmp_path: Path) -> None:
    async def busy(call: Call) -> None:
        await call.send_json({"error": {"message": "The engine is currently busy"}}, 503)

    async with (
        FakeEngine(busy) as one,
        FakeEngine(busy) as two,
        gateway(tmp_path, one.url, two.url) as running,
    ):
        response = await running.chat()
        assert response.status == 503
        assert response.headers["Retry-After"]
        assert (await response.json())["error"]["code"] == "engine_busy"
        assert len(one.calls) == len(two.calls) == 1
        one.script = answer_chat
        assert {(await running.chat()).status for _ in range(3)} == {200}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_another_engine_would_not_mend_is_not_tried_again(tmp_path: Path, stream: bool) -> None:
    """Neither a request that an engine fails at, nor one whose answer has begun."""

    async def failing(call: Call) -> None:
        await call.send_json({"error": {"message": "a bug"}}, 500)

    async def breaking(call: Call) -> None:
        if stream:
            await call.send(STREAM_HEAD)
            await call.send_event(delta("a"))
        else:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 400000\r\n\r\n"
            await call.send(head + b" " * 300_000)
        await until(lambda: any(relay.opened for e in running.gateway.pool.engines for relay in e.relays))
        call.reset()

    async with (
        FakeEngine(failing) as one,
        FakeEngine(failing) as two,
        gateway(tmp_path, one.url, two.url) as running,
    ):
        response = await running.chat(stream=stream)
        assert (response.status, len(one.calls) + len(two.calls)) == (502, 1)
        one.script = two.script = breaking
        with contextlib.suppress(aiohttp.ClientError):
            await running.chat(stream=stream)
        assert len(one.calls) + len(two.calls) == 2
        assert not [name for name in await running.metrics() if name.startswith("llm_gateway_retries_total{")]
        assert idle(running)


async def test_media_come_only_from_hosts_that_every_engine_of_a_model_may_reach(tmp_path: Path) -> None:
    def asking(host: str) -> dict[str, object]:
        part = {"type": "image_url", "image_url": {"url": f"https://{host}/cat.png"}}
        return {"model": "m", "messages": [{"role": "user", "content": [part]}]}

    async with FakeEngine(answer_chat) as engine:
        engines = [
            {"name": "a", "url": engine.url, "models": ["m"], "media_hosts": ["both.example", "a.example"]},
            {"name": "b", "url": engine.url, "models": ["m"], "media_hosts": ["both.example"]},
        ]
        async with gateway(tmp_path, engine.url, engines=engines) as running:
            for host, status in (("both.example", 200), ("a.example", 400), ("c.example", 400)):
                response = await running.ask("/v1/chat/completions", asking(host))
                assert response.status == status
            assert len(engine.calls) == 1


async def test_a_full_queue_says_when_to_come_back_and_a_leaver_frees_his_place(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await answer_chat(call)

    async with (
        FakeEngine(script) as engine,
        gateway(
            tmp_path,
            queue={"depth": 1},
            engines=[{"name": "e", "url": engine.url, "models": ["m"], "max_in_flight": 1}],
        ) as running,
    ):
        await until(lambda: running.gateway.pool.ready(0))
        first = asyncio.create_task(running.chat())
        await until(lambda: engine.calls)
        second = asyncio.create_task(running.chat())
        await until(lambda: sum(running.gateway._admission.waiting("m").values()) == 1)
        refused = await running.chat()
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        second.cancel()
        await until(lambda: sum(running.gateway._admission.waiting("m").values()) == 0)
        third = asyncio.create_task(running.chat())
        await until(lambda: sum(running.gateway._admission.waiting("m").values()) == 1)
        release.set()
        assert {(await first).status, (await third).status} == {200}
        assert len(engine.calls) == 2


async def test_a_key_has_no_more_requests_in_flight_than_it_may(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await answer_chat(call)

    await asyncio.to_thread(write_key, tmp_path / "keys.d", "team", limits={"concurrency": 2})
    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        asking = [asyncio.create_task(running.chat()) for _ in range(2)]
        await until(lambda: len(engine.calls) == 2)
        refused = await running.chat()
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        asking[0].cancel()
        await until(lambda: not idle(running) and sum(e.in_flight for e in running.gateway.pool.engines) == 1)
        third = asyncio.create_task(running.chat())
        await until(lambda: len(engine.calls) == 3)
        release.set()
        assert {(await asking[1]).status, (await third).status} == {200}


async def test_without_a_living_engine_the_answer_is_quick_and_true(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        engine.health = 503
        await until(lambda: not running.gateway.pool.ready(0))
        response = await running.chat()
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "no_engine"
        assert response.headers["Retry-After"]
        async with running.session.get(f"{running.url}/ready?wait=0") as ready:
            assert ready.status == 503
        engine.health = 200
        async with running.session.get(f"{running.url}/ready") as ready:
            assert ready.status == 200


async def test_ready_waits_for_an_engine_and_says_how_far_it_is(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine:
        engine.state = {"state": "starting", "phase": "loading weights"}
        async with gateway(tmp_path, engine.url, ready_wait=0.2) as running:
            await until(lambda: running.gateway.pool.describe(0) == "starting: loading weights")
            loop = asyncio.get_running_loop()
            for query, least in (("", 0.2), ("?wait=0", 0.0), ("?wait=99", 0.2)):
                began = loop.time()
                async with running.session.get(f"{running.url}/ready{query}") as response:
                    assert response.status == 503
                    assert "loading weights" in (await response.json())["error"]["message"]
                    assert response.headers["Retry-After"]
                assert loop.time() - began >= least
            refused = await running.chat()
            assert refused.status == 503
            assert "loading weights" in (await refused.json())["error"]["message"]
        async with gateway(tmp_path, ready_wait=60, engines=_engines(engine)) as running:
            waiting = asyncio.create_task(running.session.get(f"{running.url}/ready"))
            await until(lambda: running.gateway.pool.describe(0) == "starting: loading weights")
            assert not waiting.done()
            engine.state = {"state": "ready"}
            async with await waiting as response:
                assert response.status == 200


def _engines(engine: FakeEngine) -> list[dict[str, object]]:
    return [{"name": "e", "url": engine.url, "models": ["m"]}]
