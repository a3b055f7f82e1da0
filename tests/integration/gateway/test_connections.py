"""Connections that serve their requests themselves: order, ends, and what goes wrong in between."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemons.gateway.policy.plain import PlainReader
from tests.support.fake_engine import FakeEngine, answer_chat
from tests.support.gateway import KEY, gateway

KEYED = b"Host: x\r\nAuthorization: Bearer %b\r\n" % KEY.encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\n" + KEYED
BODY = b'{"model":"m","messages":[]}'
CHAT = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
MODELS = b"GET /v1/models HTTP/1.1\r\n" + KEYED + b"Connection: close\r\n\r\n"


def _statuses(raw: bytes) -> list[int]:
    return [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]


async def test_requests_that_come_at_once_are_answered_in_their_order(tmp_path: Path) -> None:
    unknown = CHAT.replace(b'"model":"m"', b'"model":"x"')
    missing = b"GET /nothing HTTP/1.1\r\n" + KEYED + b"\r\n"
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        raw = await running.raw(CHAT + missing + unknown + CHAT + MODELS)
        assert _statuses(raw) == [200, 404, 404, 200, 200]


async def test_after_an_answer_nobody_has_gone_on_to_another_protocol(tmp_path: Path) -> None:
    upgrade = HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: %d\r\n\r\n%b"
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        raw = await running.raw(upgrade % (len(BODY), BODY) + CHAT)
        assert _statuses(raw) == [200]
        assert b"\r\nConnection: close\r\n" in raw


async def test_who_sends_too_much_reads_why(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        raw = await running.raw(HEAD + b"Content-Length: 999999999\r\n\r\n" + b" " * 1_000_000)
        assert _statuses(raw) == [413]
        assert not engine.calls


@pytest.mark.parametrize("given", [["gzip"], ["identity, gzip"], ["identity", "gzip"], ["Identity"], []])
async def test_a_compressed_body_is_refused(tmp_path: Path, given: list[str]) -> None:
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        lines = b"".join(b"Content-Encoding: %b\r\n" % coding.encode() for coding in given)
        raw = await running.raw(HEAD + lines + b"Content-Length: 27\r\nConnection: close\r\n\r\n" + BODY)
        plain = given in ([], ["Identity"])
        assert raw.startswith(b"HTTP/1.1 200" if plain else b"HTTP/1.1 415")
        assert len(engine.calls) == plain


async def test_an_error_of_ours_is_told_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    with capture_logs() as lines:
        async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
            with monkeypatch.context() as patch:
                patch.setattr(PlainReader, "__call__", fail)
                named = CHAT.replace(b"\r\n", b"\r\nX-Request-Id: mine\r\n", 1)
                raw = await running.raw(named + CHAT)
                other = await running.ask("/v1/messages", {"model": "m"}, X_Request_Id="mine")
            assert _statuses(raw) == [500]
            assert b'"code":"internal_error"' in raw
            assert b"X-Request-Id: mine\r\n" in raw
            assert (other.status, other.headers["request-id"]) == (500, "mine")
            assert (await other.json())["type"] == "error"
            assert (await running.chat()).status == 200
            metrics = await running.metrics()
            assert metrics['llm_gateway_http_responses_total{status="500"}'] == 2
            assert sum(value for name, value in metrics.items() if "requests_in_flight" in name) == 0
    told = [(line["path"], line["request_id"]) for line in lines if line["event"] == "unhandled error"]
    assert told == [("/v1/chat/completions", "mine"), ("/v1/messages", "mine")]
