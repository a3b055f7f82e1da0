"""What a client gets from a simulator that works."""

import json
import socket
import struct
from pathlib import Path
from typing import Any

import openai
import pytest

from daemons.simulator.model.text import NOTICE
from tests.integration.simulator.conftest import CHAT, Simulator, Start, wait_for
from tests.integration.simulator.streams import Stream, conversation, send, text_of

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C"]}},
            "required": ["city", "days", "unit"],
        },
    },
}


def test_the_official_sdk_gets_an_answer_streamed_and_not(simulator: Simulator) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{simulator.port}/v1", api_key="none") as client:
        whole = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        text = whole.choices[0].message.content or ""
        stream = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        with stream:
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert text.startswith(NOTICE)
    assert "".join(pieces) == text
    assert whole.choices[0].finish_reason == "stop"


def test_a_stream_has_a_role_then_one_chunk_a_token_then_usage_then_done(simulator: Simulator) -> None:
    body = conversation(max_tokens=20, stream_options={"include_usage": True})
    with Stream(simulator.port, body=body) as stream:
        events = stream.rest()
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert len(events) == 1 + 20 + 1 + 1
    first, *tokens, last, done = events
    assert json.loads(first)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [json.loads(token)["choices"][0]["finish_reason"] for token in tokens] == [None] * 19 + ["length"]
    assert json.loads(last)["usage"]["completion_tokens"] == 20
    assert done == "[DONE]"
    assert stream.complete


def test_a_stop_string_ends_the_text_before_it(simulator: Simulator) -> None:
    body = conversation(stop=["model was"], max_tokens=50)
    with Stream(simulator.port, body=body) as stream:
        events = stream.rest()
    assert text_of(events) == NOTICE[: NOTICE.index("model was")]
    final = json.loads(events[-2])["choices"][0]
    assert (final["finish_reason"], final["stop_reason"]) == ("stop", "model was")


def test_choices_differ_and_the_same_seed_repeats_them(simulator: Simulator) -> None:
    body = conversation(stream=False, n=2, max_tokens=80, seed=5)
    texts = [
        [choice["message"]["content"] for choice in simulator.ask(CHAT, body)[1]["choices"]] for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "weather"}}, "stop")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_demanded_tool_call_fits_the_schema(
    simulator: Simulator, choice: Any, reason: str, stream: bool
) -> None:
    body = conversation(stream=stream, tools=[TOOL], tool_choice=choice, ignore_eos=False)
    if stream:
        with Stream(simulator.port, body=body) as answer:
            chunks = [json.loads(event)["choices"][0] for event in answer.rest()[:-1]]
        calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", ())]
        assert calls[0]["function"] == {"name": "weather"}
        arguments = "".join(call["function"]["arguments"] for call in calls[1:])
        finish = chunks[-1]["finish_reason"]
    else:
        answered = simulator.ask(CHAT, body)[1]["choices"][0]
        function = answered["message"]["tool_calls"][0]["function"]
        arguments, finish = function["arguments"], answered["finish_reason"]
        assert function["name"] == "weather"
    assert json.loads(arguments) == {"city": "simulated", "days": 1, "unit": "C"}
    assert finish == reason


def test_a_tool_may_be_chosen_only_with_the_flag(simulator: Simulator) -> None:
    status, body = simulator.ask(CHAT, conversation(stream=False, tools=[TOOL], tool_choice="auto"))
    assert status == 400
    assert "--enable-auto-tool-choice" in body["error"]["message"]
    named = {"type": "function", "function": {"name": "other"}}
    assert simulator.ask(CHAT, conversation(stream=False, tools=[TOOL], tool_choice=named))[0] == 400


def test_text_survives_its_tokens(simulator: Simulator) -> None:
    text = "Größe: 5 km, naïve — 日本語"
    tokens = simulator.ask("/tokenize", {"prompt": text})[1]["tokens"]
    assert simulator.ask("/detokenize", {"tokens": tokens})[1] == {"prompt": text}


def test_keys_guard_v1_and_nothing_else(start: Start) -> None:
    guarded = start("--api-key", "one", "two")
    assert guarded.ask("/v1/models") == (401, {"error": "Unauthorized"})
    assert guarded.ask("/v1/models", Authorization="Bearer no")[0] == 401
    assert guarded.ask("/v1/models", **{"x-api-key": "one"})[0] == 401
    assert guarded.ask("/v1/nothing")[0] == 401
    assert guarded.ask("/v1/models", Authorization="Bearer two")[0] == 200
    assert guarded.ask("/health")[0] == guarded.ask("/metrics")[0] == 200
    assert guarded.ask("/invocations", conversation(stream=False, max_tokens=1))[0] == 200
    guarded.end()
    assert "two" not in guarded.output


def test_the_request_id_is_taken_over_and_echoed_on_demand(simulator: Simulator, start: Start) -> None:
    body = conversation(stream=False, max_tokens=1)
    assert simulator.ask(CHAT, body, **{"X-Request-Id": "abc"})[1]["id"] == "chatcmpl-abc"
    echoing = start("--enable-request-id-headers")
    with Stream(echoing.port, "/v1/models", {}) as answer:
        assert len(answer.headers["x-request-id"]) == 32


def test_embeddings_of_a_pooling_runner(start: Start) -> None:
    pooling = start("--runner", "pooling")
    status, body = pooling.ask("/v1/embeddings", {"model": "m", "input": ["a", "b", "a"], "dimensions": 4})
    assert status == 200
    vectors = [item["embedding"] for item in body["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(value * value for value in vectors[0]) == pytest.approx(1.0)
    assert pooling.ask(CHAT, conversation())[0] == 404
    encoded = {"input": [[1, 2], [3]], "encoding_format": "base64"}
    assert isinstance(pooling.ask("/v1/embeddings", encoded)[1]["data"][0]["embedding"], str)


def test_a_unix_socket_serves_and_its_file_stays_behind(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening = start("--uds", str(path))
    with Stream(path, body=conversation(max_tokens=3)) as stream:
        assert stream.rest()[-1] == "[DONE]"
    assert listening.end() == 0
    assert path.exists()
    again = start("--uds", str(path))
    assert again.end() == 0


def test_a_client_that_leaves_ends_its_request_within_a_step(start: Start) -> None:
    server = start("--sim-inter-token-ms", "5")
    with Stream(server.port, body=conversation(max_tokens=8000)) as stream:
        next(stream.events())
        assert server.metric("vllm:num_requests_running") == 1.0
        assert server.metric("vllm:kv_cache_usage_perc") > 0.0
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0.0)
    assert server.metric("vllm:kv_cache_usage_perc") == 0.0
    assert server.metric("vllm:request_success_total", finished_reason="abort") == 0.0
    said = server.metric("vllm:generation_tokens_total")
    assert server.metric("vllm:generation_tokens_total") == said


def test_clients_that_leave_at_any_moment_end_nobody_else_s_answer(start: Start) -> None:
    server = start("--sim-inter-token-ms", "1")
    with Stream(server.port, body=conversation(max_tokens=1500)) as stays:
        for _ in range(8):
            leaving = [send(server.port, CHAT, conversation(max_tokens=400)) for _ in range(24)]
            for number, sock in enumerate(leaving):
                sock.recv(1)
                # Some reset rather than closed: what is written meanwhile finds the connection gone.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", number % 2, 0))
            for sock in leaving:
                sock.close()
        assert list(stays.events())[-1] == "[DONE]"
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0)


def test_the_same_for_a_client_that_waits_for_a_whole_answer(start: Start) -> None:
    server = start()
    with send(server.port, CHAT, conversation(stream=False)):
        wait_for(lambda: server.metric("vllm:num_requests_running") == 1.0)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0.0)


def test_a_full_queue_refuses_with_vllms_words_and_counts_it(start: Start) -> None:
    server = start("--max-num-queued-reqs", "2", "--max-num-seqs", "1")
    with Stream(server.port) as one, Stream(server.port) as _:
        next(one.events())
        wait_for(lambda: server.metric("vllm:num_requests_waiting") == 1.0)
        with Stream(server.port) as refused:
            assert refused.status == 503
            assert "retry-after" not in refused.headers
        status, body = server.ask("/v1/messages", {**conversation(max_tokens=5), "stream": False})
        assert (status, body["error"]["type"]) == (503, "Service Unavailable")
        assert body["error"]["message"].startswith("The engine is currently busy")
    assert server.metric("vllm:admission_rejections_total", reason="max_num_queued_reqs") == 2.0


def test_idle_streams_get_comments(start: Start) -> None:
    server = start("--sim-inter-token-ms", "600000", "--sse-keep-alive-interval", "1")
    with Stream(server.port, body=conversation(max_tokens=1)) as stream:
        assert next(stream.events()) == ": keep-alive"


def test_a_repeated_prompt_is_cached_and_told_on_demand(start: Start) -> None:
    server = start("--enable-prompt-tokens-details", "--sim-inter-token-ms", "1")
    body = conversation(stream=False, max_tokens=1, messages=[{"role": "user", "content": "word " * 100}])
    cached = [server.ask(CHAT, body)[1]["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
    assert cached[0] == 0
    assert cached[1] >= 96
    assert server.metric("vllm:prefix_cache_hits_total") == cached[1]
    with Stream(
        server.port, body={**body, "stream": True, "stream_options": {"include_usage": True}}
    ) as stream:
        usage = json.loads(stream.rest()[-2])["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": cached[1], "created_cache_tokens": 0}
    salted = server.ask(CHAT, {**body, "cache_salt": "mine"})[1]
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_old_metrics_by_flag(start: Start) -> None:
    server = start("--sim-metrics", "0.6.6")
    assert server.metric("vllm:gpu_cache_usage_perc", model_name="m") == 0.0
