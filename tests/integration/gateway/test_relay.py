"""Answers on their way, through a gateway on real sockets, from an engine that misbehaves on demand."""

import asyncio
import json
from pathlib import Path

import pytest
import structlog
import structlog.testing

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
from tests.support.gateway import KEY, gateway, idle, until

_CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: %b\r\nConnection: close\r\n"
    b'Content-Length: 27\r\n\r\n{"model":"m","messages":[]}' % KEY.encode()
)
OK = 'llm_gateway_requests_total{class="default",endpoint="chat",model="m",outcome="ok"}'


async def test_an_answer_in_one_piece(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        response = await running.chat()
        assert response.status == 200
        assert (await response.json())["choices"][0]["message"]["content"] == "Hello"
        assert response.headers["X-Request-Id"]
        samples = await running.metrics()
        assert samples[OK] == 1
        assert samples['llm_gateway_tokens_total{key="team",kind="completion",model="m"}'] == 2
        assert idle(running)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_of_ours_after_the_first_byte_is_never_a_second_answer(
    tmp_path: Path, stream: bool
) -> None:
    body = json.dumps({"model": "m", "messages": [], "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n".encode()
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        inference = running.gateway._inference
        assert inference is not None

        def fail(_: float) -> None:
            (exchange,) = inference.active
            assert exchange.relay is not None
            exchange.relay._done.set_exception(RuntimeError())

        running.gateway._metrics.series("m", "chat", "default").first = fail
        # Not rendered: tracebacks show sources, which no event loop of a test may read.
        with structlog.testing.capture_logs() as logged:
            raw = await running.raw(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
        assert [line for line in logged if line["event"] == "unhandled error"]
        assert raw.count(b"HTTP/1.1 ") == 1
        assert (await running.metrics())[OK.replace("ok", "internal_error")] == 1
        assert idle(running)


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
        await until(lambda: engine.calls)
        asking.cancel()
        await asyncio.wait_for(gone.wait(), 10)
        await until(lambda: idle(running))


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
        async with running.streaming() as response:
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
        assert idle(running)


@pytest.mark.parametrize(("size", "status"), [(1000, 502), (300_000, 200)])
async def test_an_answer_in_one_piece_that_is_cut_never_looks_complete(
    tmp_path: Path, size: int, status: int
) -> None:
    seen = asyncio.Event()

    async def script(call: Call) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 400000\r\n\r\n"
        await call.send(head + b" " * size)
        await seen.wait()
        call.reset()

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        asking = asyncio.create_task(running.raw(_CHAT))
        await until(lambda: any(relay.first_at for e in running.gateway.pool.engines for relay in e.relays))
        if status == 200:
            await until(lambda: any(relay.opened for e in running.gateway.pool.engines for relay in e.relays))
        seen.set()
        raw = await asking
        assert raw.startswith(b"HTTP/1.1 %d " % status)
        assert not raw.endswith(b"0\r\n\r\n")
        assert (await running.metrics())[OK.replace("ok", "engine_lost")] == 1
        assert running.gateway.pool.engines[0]._failures == 1
        assert idle(running)


async def test_an_engine_error_before_any_token_keeps_its_status(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD + event({"error": {"message": "no"}}) + event("[DONE]") + END)

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        response = await running.chat(stream=True)
        assert response.status == 502
        assert (await response.json())["error"]["code"] == "engine_error"


@pytest.mark.parametrize(
    ("path", "lines", "told"),
    [
        (
            "chat/completions",
            'data: {"error":{"message":"said \'Hi\'","type":"server_error","code":500}}',
            "server_error 500",
        ),
        (
            "chat/completions",
            'data: {"error":{"message":"Hi","type":"Hi there","code":"a b"}}',
            "no type, no code",
        ),
        ("chat/completions", 'data: {"error"', "no type, no code"),
        (
            "messages",
            'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"Hi"}}',
            "api_error",
        ),
        (
            "responses",
            'event: error\ndata: {"type":"error","code":"server_error","message":"Hi"}',
            "server_error",
        ),
    ],
)
async def test_an_engine_s_error_is_logged_by_its_name_and_not_in_its_words(
    tmp_path: Path, path: str, lines: str, told: str
) -> None:
    """They may quote the prompt or the answer."""

    async def script(call: Call) -> None:
        await call.send(STREAM_HEAD + chunk(f"{lines}\n\n".encode()) + END)

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "input": "Hi", "max_tokens": 9}
        with structlog.testing.capture_logs() as logged:
            response = await running.ask(f"/v1/{path}", {**body, "stream": True})
            await until(lambda: idle(running))
        assert response.status == 502
        assert "Hi" not in str(logged)
        details = [line["detail"] for line in logged if line["event"] == "request"]
        assert details == [f"the engine sent an error: {told}; its own log has more"]


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
