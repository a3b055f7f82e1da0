"""Answers on their way, through a gateway on real sockets, from an engine that misbehaves on demand."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from tests.support.fake_engine import (
    END,
    STREAM_HEAD,
    Call,
    FakeEngine,
    answer_chat,
    chunk,
    delta,
    event,
    usage,
)
from tests.support.gateway import KEY, Running, gateway, write_key

OK = 'llm_gateway_requests_total{class="default",endpoint="chat",model="m",outcome="ok"}'


async def _until(condition: object, seconds: float = 15.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a predicate over the gateway, not an event
            await asyncio.sleep(0.01)


def _idle(running: Running) -> bool:
    pool = running.gateway.pool
    return all(engine.in_flight == 0 and not engine.relays for engine in pool.engines)


async def test_an_answer_in_one_piece(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        response = await running.chat()
        assert response.status == 200
        assert (await response.json())["choices"][0]["message"]["content"] == "Hello"
        assert response.headers["X-Request-Id"]
        samples = await running.metrics()
        assert samples[OK] == 1
        assert samples['llm_gateway_tokens_total{key="team",kind="completion",model="m"}'] == 2
        assert _idle(running)


@pytest.mark.parametrize(
    "options", [None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
)
async def test_a_stream_is_what_the_engine_would_have_sent(tmp_path: Path, options: object) -> None:
    """Usage is always asked for; the client gets exactly what its own options would have given it."""
    asked = {"stream": True, **({"stream_options": options} if options else {})}
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        response = await running.chat(**asked)
        through = await response.read()
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
        body = json.dumps({"model": "m", **asked}).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        direct = await reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
        writer.close()
        pieces = direct.partition(b"\r\n\r\n")[2].split(b"\r\n")
        assert through == b"".join(pieces[1::2])
        assert (await running.metrics())['llm_gateway_tokens_total{key="team",kind="prompt",model="m"}'] == 7


async def test_the_engine_gets_salt_and_usage_and_not_what_tenants_must_not_set(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        await running.chat(stream=True, priority=-5, cache_salt="mine", unheard_of=1, temperature=0.5)
        sent = engine.calls[0].json
        assert sent.keys() == {"model", "messages", "stream", "stream_options", "cache_salt", "temperature"}
        assert sent["cache_salt"] != "mine"
        assert len(sent["cache_salt"]) == 64


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_the_engines_work(tmp_path: Path, stream: bool) -> None:
    gone = asyncio.Event()

    async def script(call: Call) -> None:
        if stream:
            await call.send(STREAM_HEAD)
            await call.send_event(delta("a", usage=usage(7, 1)))
        await call.gone()
        gone.set()

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        asking = asyncio.create_task(running.chat(stream=stream))
        await _until(lambda: engine.calls)
        asking.cancel()
        await asyncio.wait_for(gone.wait(), 10)
        await _until(lambda: _idle(running))


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("reset", "engine_lost"),
        ("truncated", "engine_lost"),
        ("framing", "engine_protocol_error"),
        ("error", "engine_error"),
    ],
)
async def test_a_stream_that_fails_never_looks_complete(tmp_path: Path, how: str, word: str) -> None:
    seen = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD)
        await call.send_event(delta("a", usage=usage(7, 1)))
        await seen.wait()
        if how == "reset":
            call.reset()
        elif how == "truncated":
            await call.send(END)
        elif how == "framing":
            await call.send(b"xyz\r\n")
        else:
            await call.send(event({"error": {"message": "EngineCore died"}}) + event("[DONE]") + END)

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        body = {"model": "m", "messages": [], "stream": True}
        bearer = {"Authorization": f"Bearer {KEY}"}
        response = await running.session.post(running.url + "/v1/chat/completions", json=body, headers=bearer)
        first = await response.content.readuntil(b"\n\n")
        seen.set()
        text = (first + await response.read()).decode()
        events = [e for e in text.split("\n\n") if e]
        assert response.status == 200
        assert "[DONE]" not in events[-1]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == word
        assert len(events) == 2
        name = f'llm_gateway_requests_total{{class="default",endpoint="chat",model="m",outcome="{word}"}}'
        samples = await running.metrics()
        assert samples[name] == 1
        assert samples['llm_gateway_tokens_total{key="team",kind="completion",model="m"}'] == 1
        assert _idle(running)


async def test_an_engine_error_before_any_token_keeps_its_status(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD + event({"error": {"message": "no"}}) + event("[DONE]") + END)

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        response = await running.chat(stream=True)
        assert response.status == 502
        assert (await response.json())["error"]["code"] == "engine_error"


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
        assert _idle(running)


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
            await _until(lambda: all(engine.in_flight == 1 for engine in pool.engines))
            waiting = asyncio.create_task(running.chat(model="x"))
            await _until(lambda: running.gateway._admission.waiting("x")["default"] == 1)
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
    async def script(call: Call) -> None:
        await asyncio.sleep(0.4)
        if call.json.get("temperature") == 2:
            await call.send_json({"error": {"message": "maximum context length is 9"}}, 400)
        else:
            await answer_chat(call)

    async with (
        FakeEngine(script) as engine,
        gateway(tmp_path, engine.url, timeouts={"keep_alive": 0.1}) as running,
    ):
        good = await (await running.chat(stream=True)).text()
        assert good.startswith(": keep-alive\n\n")
        assert good.endswith("data: [DONE]\n\n")
        bad = await (await running.chat(stream=True, temperature=2)).text()
        assert bad.startswith(": keep-alive\n\n")
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
        await _until(lambda: _idle(running))
        writer.close()


async def test_a_stream_of_named_events_arrives_whole(tmp_path: Path) -> None:
    parts = [
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":5,"output_tokens":0}}}\n\n',
        b'event: content_block_delta\ndata: {"delta":{"text":"a"}}\n\n',
        b'event: message_delta\ndata: {"usage":{"input_tokens":5,"output_tokens":1}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ]

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD)
        for part in parts:
            await call.send(chunk(part))
        await call.send(END)

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        response = await running.ask("/v1/messages", {"model": "m", "stream": True})
        assert await response.read() == b"".join(parts)
        name = 'llm_gateway_requests_total{class="default",endpoint="messages",model="m",outcome="ok"}'
        assert (await running.metrics())[name] == 1


async def test_an_idle_connection_that_the_engine_closed_costs_nobody_a_request(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await answer_chat(call)
        call.reset()

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        for _ in range(5):
            assert (await running.chat()).status == 200


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
        await _until(lambda: running.gateway.pool.ready(0))
        first = asyncio.create_task(running.chat())
        await _until(lambda: engine.calls)
        second = asyncio.create_task(running.chat())
        await _until(lambda: sum(running.gateway._admission.waiting("m").values()) == 1)
        refused = await running.chat()
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        second.cancel()
        await _until(lambda: sum(running.gateway._admission.waiting("m").values()) == 0)
        third = asyncio.create_task(running.chat())
        await _until(lambda: sum(running.gateway._admission.waiting("m").values()) == 1)
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
        await _until(lambda: len(engine.calls) == 2)
        refused = await running.chat()
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        asking[0].cancel()
        await _until(
            lambda: not _idle(running) and sum(e.in_flight for e in running.gateway.pool.engines) == 1
        )
        third = asyncio.create_task(running.chat())
        await _until(lambda: len(engine.calls) == 3)
        release.set()
        assert {(await asking[1]).status, (await third).status} == {200}


async def test_without_a_living_engine_the_answer_is_quick_and_true(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        engine.health = 503
        await _until(lambda: not running.gateway.pool.ready(0))
        response = await running.chat()
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "no_engine"
        assert response.headers["Retry-After"]
        async with running.session.get(f"{running.url}/ready?wait=0") as ready:
            assert ready.status == 503
        engine.health = 200
        async with running.session.get(f"{running.url}/ready") as ready:
            assert ready.status == 200


async def test_a_drain_lets_a_stream_finish_and_refuses_nobody(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD)
        await call.send_event(delta("a"))
        await go_on.wait()
        await call.send(event("[DONE]") + END)

    async with (
        FakeEngine(script) as engine,
        gateway(tmp_path, engine.url) as running,
        aiohttp.ClientSession() as session,
    ):
        async with session.post(
            running.url + "/v1/chat/completions",
            json={"model": "m", "messages": [], "stream": True},
            headers={"Authorization": f"Bearer {KEY}"},
        ) as response:
            await response.content.readuntil(b"\n\n")
            stopping = asyncio.create_task(running.gateway.stop())
            await _until(
                lambda: running.gateway._inference is not None and running.gateway._inference.draining
            )
            go_on.set()
            assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
        await stopping


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (b"204 No\r\n\r\n", 502, "engine_protocol_error"),
        (b"301 Moved\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n", 502, "engine_protocol_error"),
        (b'401 No\r\ncontent-length: 37\r\n\r\n{"error":{"message":"my-secret-key"}}', 502, "engine_error"),
        (b"403 No\r\ncontent-length: 0\r\n\r\n", 502, "engine_error"),
        (b"429 Slow\r\ncontent-length: 0\r\n\r\n", 503, "engine_busy"),
        (b'404 No\r\ncontent-length: 22\r\n\r\n{"detail":"Not Found"}', 404, "not_found"),
        (b'422 No\r\ncontent-length: 13\r\n\r\n{"detail":[]}', 422, "invalid_request"),
        (b"500 Oh\r\ncontent-length: 0\r\n\r\n", 502, "engine_error"),
        (b"200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}", 502, "engine_protocol_error"),
        (b"200 OK\r\nx: a\r\n b\r\ncontent-length: 2\r\n\r\n{}", 502, "engine_protocol_error"),
        (b"200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502, "engine_protocol_error"),
        (
            b"200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nowned",
            502,
            "engine_protocol_error",
        ),
        (b"101 Switch\r\n\r\n", 502, "engine_protocol_error"),
    ],
)
async def test_what_an_engine_must_not_say(tmp_path: Path, answer: bytes, status: int, code: str) -> None:
    """The client is told of the engine, never blamed for it, and gets nothing that was meant for another."""

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 " + answer)

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        for stream in (False, True):
            response = await running.chat(stream=stream)
            assert (response.status, (await response.json())["error"]["code"]) == (status, code)
            assert "my-secret-key" not in await response.text()
        engine.script = answer_chat
        assert "owned" not in await (await running.chat()).text()


async def test_ready_waits_for_an_engine_and_says_how_far_it_is(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine:
        engine.state = {"state": "starting", "phase": "loading weights"}
        async with gateway(tmp_path, engine.url, ready_wait=0.2) as running:
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
            await _until(lambda: running.gateway.pool.describe() == "starting: loading weights")
            assert not waiting.done()
            engine.state = {"state": "ready"}
            async with await waiting as response:
                assert response.status == 200


def _engines(engine: FakeEngine) -> list[dict[str, object]]:
    return [{"name": "e", "url": engine.url, "models": ["m"]}]


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("busy", "engine_busy"),
        ("lost", "engine_lost"),
        ("bound", "parameter_out_of_bounds"),
        ("cut", "engine_lost"),
    ],
)
async def test_a_failure_has_one_word_everywhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, word: str
) -> None:
    async def script(call: Call) -> None:
        if how == "busy":
            await call.send_json({}, 503)
            return
        if how == "cut":
            await call.send(STREAM_HEAD)
            await call.send_event(delta("a"))
        call.reset()

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        asked: dict[str, object] = {"stream": how == "cut", **({"n": 99} if how == "bound" else {})}
        text = await (await running.chat(**asked)).text()
        told = json.loads(text.rpartition("data: ")[2])["error"]
        assert told["code"] == word
        (line,) = (line for line in "".join(capfd.readouterr()).splitlines() if "request_id=" in line)
        assert f"outcome={word}" in line
        for figure in (
            "client=127.0.0.1",
            "queue_ms=",
            "engine_ms=",
            "ttft_ms=",
            "duration_ms=",
            "bytes_in=",
        ):
            assert figure in line
        model = "m" if how != "bound" else "other"
        name = (
            f'llm_gateway_requests_total{{class="default",endpoint="chat",model="{model}",outcome="{word}"}}'
        )
        assert (await running.metrics())[name] == 1


async def test_a_connection_is_not_closed_under_the_next_request_of_a_client_that_was_not_told(
    tmp_path: Path,
) -> None:
    """A stream that began before the drain ends with its connection open: its head announced nothing else."""
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        if not call.json.get("stream"):
            await answer_chat(call)
            return
        await call.send(STREAM_HEAD)
        await call.send_event(delta("a"))
        await go_on.wait()
        await call.send(event("[DONE]") + END)

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)

        def ask(stream: str) -> bytes:
            body = b'{"model":"m","messages":[],"stream":%b}' % stream.encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
            return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body

        writer.write(ask("true"))
        assert b"Connection: close" not in await reader.readuntil(b"\r\n\r\n")
        stopping = asyncio.create_task(running.gateway.stop())
        await _until(lambda: running.gateway._inference is not None and running.gateway._inference.draining)
        go_on.set()
        await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(ask("false"))
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"Connection: close" in answer
        writer.close()
        await stopping
