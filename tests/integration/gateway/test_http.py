"""The HTTP surface: refusals in the right form, framing that could be read twice, keys, admin, CORS."""

import asyncio
import json
import os
from pathlib import Path

import aiohttp
import pytest

from daemons.gateway.api.endpoints import ENDPOINTS
from tests.support.fake_engine import Call, FakeEngine, answer_chat
from tests.support.gateway import BEARER, KEY, gateway, until, write_key

BODY = b'{"model":"m","messages":[]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n" % KEY.encode()


def _answer(raw: bytes) -> tuple[int, dict[str, object]]:
    head, _, body = raw.partition(b"\r\n\r\n")
    error: dict[str, object] = json.loads(body)["error"]
    return int(head.split(b" ")[1]), error


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 27\r\nContent-Length: 28\r\n\r\n" + BODY,
        b"Content-Length: 27\r\nTransfer-Encoding: chunked\r\n\r\n1b\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n1b\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"Transfer-Encoding: identity\r\nContent-Length: 27\r\n\r\n" + BODY,
        b"Transfer-Encoding: xchunked\r\n\r\n1b\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1b\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + BODY,
        b"Transfer-Encoding: chunked\r\n\r\n0x1b\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1b\r\n" + BODY + b"XX0\r\n\r\n",
        b"Content-Length: +27\r\n\r\n" + BODY,
        b"Content-Length: 2 7\r\n\r\n" + BODY,
        b"X: a\r\n folded: b\r\nContent-Length: 27\r\n\r\n" + BODY,
        b"X : a\r\nContent-Length: 27\r\n\r\n" + BODY,
        b"X: a\0b\r\nContent-Length: 27\r\n\r\n" + BODY,
    ],
)
async def test_what_could_be_read_twice_is_refused(tmp_path: Path, framing: bytes) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        smuggled = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
        raw = await running.raw(HEAD + framing + smuggled)
        status, error = _answer(raw)
        assert status == 400
        assert error["code"] == "invalid_http"
        assert raw.count(b"HTTP/1.1 ") == 1
        assert not engine.calls


@pytest.mark.parametrize("line", ["GET /health", "GET /v1/models", "POST /nothing", "OPTIONS /health"])
async def test_where_no_body_is_read_its_framing_is_looked_at_too(tmp_path: Path, line: str) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        chunked = b"Host: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
        smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        raw = await running.raw(f"{line} HTTP/1.1\r\n".encode() + chunked + smuggled)
        assert raw.count(b"HTTP/1.1 ") == 1
        status, error = _answer(raw)
        assert (status, error["code"]) == (400, "invalid_http")


async def test_chunk_extensions_are_ignored_and_bodies_framed_anew(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        chunked = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        chunked += b"5;a=b\r\n%b\r\n16;c\r\n%b\r\n0\r\nX: y\r\n\r\n"
        raw = await running.raw(HEAD + chunked % (BODY[:5], BODY[5:]))
        assert raw.startswith(b"HTTP/1.1 200 ")
        call = engine.calls[0]
        assert "transfer-encoding" not in call.headers
        assert int(call.headers["content-length"]) == len(call.body)
        assert call.json["messages"] == []


async def test_what_is_no_http_is_told_without_repeating_it(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        for lines, status, code in (
            (b"Authorization: Bearer my-secret\0\r\n", 400, "invalid_http"),
            (b"Authorization: Bearer my-secret\nX: y\r\n", 400, "invalid_http"),
            (b"X-API-Key: my-secret" + b"y" * 20000 + b"\r\n", 431, "headers_too_large"),
            (b"".join(b"X-%d: my-secret\r\n" % i for i in range(100)), 431, "headers_too_large"),
        ):
            raw = await running.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
            assert (_answer(raw)[0], _answer(raw)[1]["code"]) == (status, code)
            assert b"my-secret" not in raw
            assert b"X-Request-Id: " in raw
        old = await running.raw(b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n")
        assert _answer(old)[0] == 505
        samples = await running.metrics()
        assert samples['llm_gateway_http_responses_total{status="431"}'] == 2


async def test_a_client_that_waits_to_be_told_goes_on(tmp_path: Path) -> None:
    """``Expect: 100-continue``, as curl sends it with bodies of over a megabyte."""
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 27\r\nConnection: close\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        stranger = (
            HEAD.replace(KEY.encode(), b"wrong") + b"Expect: 100-continue\r\nContent-Length: 27\r\n\r\n"
        )
        assert (await running.raw(stranger)).startswith(b"HTTP/1.1 401 ")
        other = HEAD + b"Expect: miracles\r\nContent-Length: 27\r\n\r\n" + BODY
        assert (await running.raw(other)).startswith(b"HTTP/1.1 417 ")
        assert len(engine.calls) == 1


async def test_a_connection_that_never_asks_is_closed(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine:
        async with gateway(tmp_path, engine.url, timeouts={"idle_connection": 0.3}) as running:
            assert await running.raw(b"") == b""
            assert await running.raw(b"GET /health HTTP/1.1\r\nHo") == b""
        async with gateway(tmp_path, engine.url, timeouts={"request_body": 0.3}) as running:
            assert (await running.raw(HEAD + b"Content-Length: 27\r\n\r\n{")).startswith(b"HTTP/1.1 408 ")


async def test_a_flood_of_connections_takes_no_place_from_requests(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        if call.json.get("stream"):
            await go_on.wait()
        await answer_chat(call)

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        server = running.gateway._server
        assert server is not None
        server._most = 10
        stream = asyncio.create_task(running.chat(stream=True))
        await until(lambda: engine.calls)
        idle = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(40)]
        assert (await running.chat()).status == 200
        assert len(server.alive) <= 10
        go_on.set()
        assert "[DONE]" in await (await stream).text()
        for _, writer in idle:
            writer.transport.abort()


async def test_strangers_are_counted_and_logged_without_their_keys(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        for _ in range(5):
            await running.ask("/v1/chat/completions", {"model": "m"}, "not-a-key", X_Request_Id="stranger")
        told = "".join(capfd.readouterr())
        assert "not-a-key" not in told
        assert 1 <= told.count("request_id=stranger") < 5
        assert (await running.metrics())['llm_gateway_auth_failures_total{reason="invalid_api_key"}'] == 5


async def test_anthropic_habits(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        head = {"X-API-Key": KEY, "anthropic-version": "2023-06-01"}
        async with running.session.get(running.url + "/v1/models?limit=20", headers=head) as response:
            page = await response.json()
            assert (page["has_more"], page["first_id"], page["data"][0]["type"]) == (False, "m", "model")
        async with running.session.get(running.url + "/v1/files", headers=head) as response:
            told = await response.json()
            assert (told["type"], told["error"]["type"]) == ("error", "not_found_error")
            assert told["error"]["message"] == "There is nothing at /v1/files."
        async with running.session.post(running.url + "/v1/v1/messages", json={}, headers=head) as response:
            told = await response.json()
            assert (response.status, told["error"]["type"]) == (404, "not_found_error")
            assert told["error"]["message"].startswith(
                "There is nothing at /v1/v1/messages. Leave the last /v1"
            )
        async with running.session.post(
            running.url + "/v1/messages?beta=true",
            json={"model": "m"},
            headers={**head, "X-Request-Id": "mine"},
        ) as response:
            assert response.headers["request-id"] == "mine"
        async with running.session.post(
            running.url + "/v1/messages", json={"model": "x"}, headers=head
        ) as response:
            assert response.headers["request-id"] == response.headers["X-Request-Id"]


async def test_every_refusal_has_its_apis_form(tmp_path: Path) -> None:
    async with (
        FakeEngine(answer_chat) as engine,
        gateway(tmp_path, engine.url, limits={"body_bytes": 1000}) as running,
    ):
        for path, body, key, status, code in (
            ("/v1/chat/completions", {"model": "m"}, "wrong", 401, "invalid_api_key"),
            ("/v1/chat/completions", {"model": "x"}, KEY, 404, "model_not_found"),
            ("/v1/chat/completions", {"messages": []}, KEY, 400, "invalid_request"),
            ("/v1/chat/completions", [1], KEY, 400, "invalid_json"),
            ("/v1/chat/completions", {"model": "m", "n": 99}, KEY, 400, "parameter_out_of_bounds"),
            ("/v1/completions", {"model": "m", "prompt_embeds": "x"}, KEY, 400, "parameter_not_allowed"),
            ("/v1/chat/completions", {"model": "m", "user": "x" * 2000}, KEY, 413, "body_too_large"),
            ("/invocations", {"model": "m"}, KEY, 404, "not_found"),
            ("/v1/load_lora_adapter", {"model": "m"}, KEY, 404, "not_found"),
        ):
            response = await running.ask(path, body, key)
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (status, code)
            assert error.keys() == {"message", "type", "param", "code"}
            assert response.headers["X-Request-Id"]
        response = await running.ask("/v1/messages", {"model": "x"})
        told = await response.json()
        assert (response.status, told["type"], told["error"]["type"]) == (404, "error", "not_found_error")
        async with running.session.get(running.url + "/v1/chat/completions") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
        bad = await running.raw(HEAD + b"Content-Length: 1\r\nConnection: close\r\n\r\n{")
        assert _answer(bad)[1]["code"] == "invalid_json"
        for lines in (b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b""):
            end = b"0\r\n\r\n" if b"chunked" in lines else b""
            _, error = _answer(await running.raw(HEAD + lines + b"Connection: close\r\n\r\n" + end))
            assert error["message"] == "The request body is empty; it must be a JSON object."
        assert not engine.calls


async def test_request_identifiers(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        response = await running.ask("/v1/chat/completions", {"model": "m"}, X_Request_Id="mine-1")
        assert response.headers["X-Request-Id"] == "mine-1"
        assert engine.calls[0].headers["x-request-id"].startswith("mine-1-")
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        response = await running.ask(
            "/v1/chat/completions", {"model": "m"}, X_Request_Id="a b", traceparent=trace
        )
        assert response.headers["X-Request-Id"] != "a b"
        assert engine.calls[1].headers["traceparent"] == trace


async def test_keys_change_while_serving(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:

        async def status(key: str, model: str = "m") -> int:
            return (await running.ask("/v1/chat/completions", {"model": model}, key)).status

        async def becomes(key: str, wanted: int) -> None:
            async with asyncio.timeout(60):
                while await status(key) != wanted:  # noqa: ASYNC110 - files are watched, no event
                    await asyncio.sleep(0.05)

        folder = tmp_path / "keys.d"
        await asyncio.to_thread(write_key, folder, "other", "second")
        await becomes("second", 200)
        broken = folder / "other.yaml"
        await asyncio.to_thread(broken.write_text, "name: [")
        await asyncio.to_thread(write_key, folder, "third", "third")
        await becomes("third", 200)
        assert await status("second") == 200
        await asyncio.to_thread(write_key, folder, "other", "second", disabled=True)
        await becomes("second", 401)
        await asyncio.to_thread(write_key, folder, "third", "third", models=["else"])
        await becomes("third", 403)
        await asyncio.to_thread(write_key, folder, "third", "third", networks=["10.0.0.0/8"])
        await becomes("third", 403)
        await asyncio.to_thread(os.unlink, folder / "third.yaml")
        await becomes("third", 401)
        async with running.session.get(running.url + "/v1/models", headers={"X-API-Key": KEY}) as response:
            assert [m["id"] for m in (await response.json())["data"]] == ["m"]


async def test_the_admin_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with (
        FakeEngine(answer_chat) as engine,
        gateway(tmp_path, engine.url, admin=str(path)) as running,
        aiohttp.ClientSession("http://gateway", connector=aiohttp.UnixConnector(str(path))) as admin,
    ):
        await running.ask("/v1/chat/completions", {"model": "m"}, X_Request_Id="find-me")
        async with admin.get("/explain/find-me") as response:
            assert (await response.json())["outcome"] == "ok"
        async with admin.get("/explain/unknown") as response:
            assert response.status == 404
        async with admin.get("/top") as response:
            assert await response.json() == []
        async with admin.post("/drain/e0") as response:
            assert (await response.json())["drained"] is True
        assert (await running.chat()).status == 503
        async with admin.get("/state") as response:
            assert (await response.json())["engines"][0]["drained"] is True
        async with admin.post("/undrain/e0"):
            assert (await running.chat()).status == 200


async def test_cors_is_for_named_origins_only(tmp_path: Path) -> None:
    cors = {"allowed_origins": ["https://chat.example.org"]}
    write_key(tmp_path / "keys.d", "team", limits={"requests_per_minute": 9, "tokens_per_minute": 9000})
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url, cors=cors) as running:
        for origin, status in (("https://chat.example.org", 204), ("https://evil.example.org", 405)):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            async with running.session.options(
                running.url + "/v1/chat/completions", headers=headers
            ) as response:
                assert response.status == status
            headers["Access-Control-Request-Headers"] = "authorization, x-stainless-os"
            async with running.session.options(running.url + "/v1/models", headers=headers) as response:
                assert response.status == status
                assert response.headers["X-Request-Id"]
                allowed = response.headers.get("Access-Control-Allow-Headers", "")
                assert ("x-stainless-os" in allowed) == (status == 204)
            answer = await running.ask("/v1/chat/completions", {"model": "m"}, Origin=origin)
            assert ("Access-Control-Allow-Origin" in answer.headers) == (status == 204)
            exposed = answer.headers.get("Access-Control-Expose-Headers", "").lower().split(", ")
            told = {name.lower() for name in answer.headers if name.lower().startswith(("x-", "retry-"))}
            assert {"x-request-id", "x-ratelimit-remaining-tokens"} <= told
            assert (told <= set(exposed)) == (status == 204)


async def test_by_default_no_other_origin_is_allowed(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        origin = {"Origin": "https://chat.example.org", "Access-Control-Request-Method": "POST"}
        for path in ("/v1/chat/completions", "/v1/models", "/health"):
            async with running.session.options(running.url + path, headers=origin) as response:
                assert response.status == 405
                assert not [name for name in response.headers if name.startswith("Access-Control")]
        answer = await running.ask("/v1/chat/completions", {"model": "m"}, Origin=origin["Origin"])
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
async def test_every_path_asks_for_a_key_and_goes_to_the_engine_under_its_own_name(
    tmp_path: Path, path: str
) -> None:
    async def script(call: Call) -> None:
        await call.send_json({"usage": {"prompt_tokens": 3}})

    async with FakeEngine(script) as engine, gateway(tmp_path, engine.url) as running:
        for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
            async with running.session.post(running.url + path, json={"model": "m"}, headers=headers) as told:
                assert told.status == 401
        assert not engine.calls
        async with running.session.post(
            running.url + path + "?a=b", json={"model": "m"}, headers={"X-API-Key": KEY, "X-Other": "x"}
        ) as response:
            assert response.status == 200
        (call,) = engine.calls
        assert call.path == path
        assert call.headers.keys() <= {"host", "content-type", "content-length", "x-request-id"}
        for method in ("GET", "PUT", "DELETE"):
            async with running.session.request(method, running.url + path) as refused:
                assert (refused.status, refused.headers["Allow"]) == (405, "POST")


async def test_models_and_usage_ask_for_a_key_and_models_tell_whether_they_are_there(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        for path in ("/v1/models", "/v1/models/m", "/v1/usage"):
            async with running.session.get(running.url + path) as response:
                assert response.status == 401

        async def ready() -> bool:
            async with running.session.get(running.url + "/v1/models/m", headers=BEARER) as response:
                return bool((await response.json())["ready"])

        assert await ready()
        engine.health = 503
        await until(lambda: not running.gateway.pool.ready(0))
        assert not await ready()
        assert not engine.calls


async def test_who_asks_for_a_wrong_model_is_told_where_the_right_ones_are(tmp_path: Path) -> None:
    write_key(tmp_path / "keys.d", "team")
    write_key(tmp_path / "keys.d", "other", "other", models=["else"])
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        for key, model, status, listed in ((KEY, "gpt-4", 404, ["m"]), ("other", "m", 403, [])):
            response = await running.ask("/v1/chat/completions", {"model": model}, key)
            told = (await response.json())["error"]["message"]
            assert (response.status, f"'{model}'" in told) == (status, True)
            assert told.endswith(". GET /v1/models lists those that this key may use.")
            async with running.session.get(running.url + "/v1/models", headers={"X-API-Key": key}) as page:
                assert [model["id"] for model in (await page.json())["data"]] == listed


async def test_a_cache_is_shared_between_chosen_keys_only(tmp_path: Path) -> None:
    for name, more in (
        ("a", {"cache_group": "both"}),
        ("b", {"cache_group": "both"}),
        ("c", {}),
        ("both", {}),
    ):
        write_key(tmp_path / "keys.d", name, f"key-{name}", **more)
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        for key in ("a", "b", "c", "both"):
            answer = await running.ask("/v1/chat/completions", {"model": "m"}, f"key-{key}")
            assert answer.status == 200
        a, b, c, both = (call.json["cache_salt"] for call in engine.calls)
        assert a == b
        assert len({a, c, both}) == 3
