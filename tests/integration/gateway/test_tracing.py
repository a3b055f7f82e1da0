"""Spans reach a collector, carry on the client's trace, lead to the engine; a dead collector is harmless."""

import sys
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from daemons.gateway.__main__ import main
from tests.support.collector import attributes, collector
from tests.support.fake_engine import Call, FakeEngine, answer_chat
from tests.support.gateway import gateway, write_key

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_is_two_spans_of_the_clients_trace(tmp_path: Path, stream: bool) -> None:
    async with FakeEngine(answer_chat) as engine, collector() as collected:
        async with gateway(tmp_path, engine.url, tracing={"endpoint": collected.endpoint}) as running:
            await running.ask(
                "/v1/chat/completions",
                {"model": "m", "messages": [], "stream": stream},
                traceparent=f"00-{TRACE}-{PARENT}-01",
                tracestate="vendor=1",
                X_Request_Id="mine",
            )
        spans = {span.kind: span for span in collected.spans}
        request, call = spans[Span.SPAN_KIND_SERVER], spans[Span.SPAN_KIND_CLIENT]
        assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
        assert request.parent_span_id.hex() == PARENT
        assert call.parent_span_id == request.span_id
        sent = engine.calls[0].headers
        assert sent["traceparent"] == f"00-{TRACE}-{call.span_id.hex()}-01"
        assert sent["tracestate"] == "vendor=1"
        assert request.name == "POST /v1/chat/completions"
        assert request.start_time_unix_nano <= call.start_time_unix_nano <= call.end_time_unix_nano
        told = attributes(request)
        assert told["gen_ai.usage.output_tokens"] == 2
        assert (told["llm.key"], told["llm.outcome"], told["llm.request_id"]) == ("team", "ok", "mine")
        assert attributes(call)["llm.engine"] == "e0"
        assert collected.services == {"llm-gateway"}


async def test_failures_are_told_and_a_client_without_a_trace_begins_one(tmp_path: Path) -> None:
    async def lose(call: Call) -> None:
        call.reset()

    async with FakeEngine(lose) as engine, collector() as collected:
        async with gateway(tmp_path, engine.url, tracing={"endpoint": collected.endpoint}) as running:
            await running.chat()
            await running.chat(n=99)
        lost, refused = (s for s in collected.spans if s.kind == Span.SPAN_KIND_SERVER)
        assert not lost.parent_span_id
        assert lost.status.code == Status.STATUS_CODE_ERROR
        assert attributes(lost)["error.type"] == "engine_lost"
        assert engine.calls[0].headers["traceparent"].split("-")[1] == lost.trace_id.hex()
        assert refused.status.code == Status.STATUS_CODE_UNSET
        assert attributes(refused)["error.type"] == "parameter_out_of_bounds"


async def test_a_trace_that_is_not_sampled_goes_on_unseen(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, collector() as collected:
        async with gateway(tmp_path, engine.url, tracing={"endpoint": collected.endpoint}) as running:
            body = {"model": "m", "messages": []}
            await running.ask("/v1/chat/completions", body, traceparent=f"00-{TRACE}-{PARENT}-00")
        assert not collected.spans
        assert engine.calls[0].headers["traceparent"].startswith(f"00-{TRACE}-")
        assert engine.calls[0].headers["traceparent"].endswith("-00")


async def test_a_collector_that_is_gone_or_refuses_costs_no_request(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, collector() as collected:
        collected.status = 400
        for endpoint in (collected.endpoint, "http://127.0.0.1:9/v1/traces"):
            async with gateway(tmp_path, engine.url, tracing={"endpoint": endpoint}) as running:
                assert (await running.chat()).status == 200


def test_without_the_extra_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_key(tmp_path / "keys.d", "team")
    config = tmp_path / "gateway.yaml"
    config.write_text(
        "engines: [{name: a, url: 'http://127.0.0.1:9', models: [m]}]\ntracing: {endpoint: 'http://127.0.0.1:9/'}\n"
    )
    assert main(["--config", str(config), "--check"]) == 0
    monkeypatch.setitem(sys.modules, "daemons.gateway.tracing", None)
    assert main(["--config", str(config), "--check"]) == 78
    assert "extra 'otel'" in capsys.readouterr().err
