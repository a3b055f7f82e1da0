"""The official clients against the gateway before the real vLLM: what users will do on the first day."""

import time
import urllib.error
import urllib.request
from typing import Any

import anthropic
import openai
import pytest

from tests.support.gateway import KEY
from tests.support.vllm_stack import Stack

pytestmark = [pytest.mark.vllm, pytest.mark.sdks, pytest.mark.timeout(900)]

HELLO: Any = [{"role": "user", "content": "Say hello."}]
FIXED: dict[str, Any] = {"max_tokens": 8, "extra_body": {"ignore_eos": True}}


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"m", "e"}
    assert client.models.retrieve("m").id == "m"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO, n=2, **FIXED)
    assert len(answer.choices) == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize("usage", [True, False])
def test_chat_streamed(client: openai.OpenAI, usage: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    with client.chat.completions.create(
        model="m",
        messages=HELLO,
        stream=True,
        **options,
        **FIXED,
    ) as stream:
        chunks = list(stream)
    counts = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [count.completion_tokens for count in counts] == ([8] if usage else [])
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_a_stream_is_byte_for_byte_what_vllm_would_have_sent(stack: Stack) -> None:
    """Same request, straight and through the gateway; identifiers and times apart."""
    plain = '{"model":"m","stream":true,"max_tokens":6,"ignore_eos":true,"temperature":0,"prompt":"One"%s}'
    for options in ("", ',"stream_options":{"include_usage":true}'):
        texts = []
        for base in (stack.url, stack.engine_url):
            request = urllib.request.Request(
                f"{base}/v1/completions",
                (plain % options).encode(),
                {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                lines = response.read().decode().splitlines()
            texts.append({_blank(line) for line in lines})
        assert texts[0] == texts[1]


def _blank(line: str) -> str:
    keep = [part for part in line.split(",") if '"id"' not in part and '"created"' not in part]
    # How many tokens share an event is the engine's momentary choice.
    return "" if '"text"' in line else ",".join(keep)


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m",
        messages=HELLO,
        logprobs=True,
        top_logprobs=3,
        **FIXED,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content[0].top_logprobs) >= 3


def test_structured_output_and_tools(client: openai.OpenAI) -> None:
    schema: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = client.chat.completions.create(
        model="m",
        messages=HELLO,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")
    called = client.chat.completions.create(
        model="m",
        messages=HELLO,
        max_tokens=200,
        temperature=0,
        tools=[{"type": "function", "function": {"name": "look", "parameters": schema}}],
        tool_choice={"type": "function", "function": {"name": "look"}},
    )
    calls = called.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "look"


def test_tools_structure_and_logprobs_streamed(client: openai.OpenAI) -> None:
    schema: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    with client.chat.completions.create(
        model="m",
        messages=HELLO,
        max_tokens=200,
        temperature=0,
        stream=True,
        tools=[{"type": "function", "function": {"name": "look", "parameters": schema}}],
        tool_choice={"type": "function", "function": {"name": "look"}},
    ) as stream:
        calls = [c for chunk in stream if chunk.choices for c in chunk.choices[0].delta.tool_calls or []]
    assert {call.function.name for call in calls if call.function and call.function.name} == {"look"}
    with client.chat.completions.create(
        model="m",
        messages=HELLO,
        max_tokens=60,
        stream=True,
        logprobs=True,
        top_logprobs=2,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    ) as stream:
        chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert "".join(c.delta.content or "" for c in chunks).lstrip().startswith("{")
    assert any(c.logprobs and c.logprobs.content and c.logprobs.content[0].top_logprobs for c in chunks)


def test_completions_and_responses(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt="One, two,", **FIXED)
    assert answer.choices[0].text
    response = client.responses.create(model="m", input="Say hello.", max_output_tokens=16)
    assert response.usage is not None
    with client.responses.create(model="m", input="Hi", max_output_tokens=16, stream=True) as stream:
        kinds = [event.type for event in stream]
    assert kinds[-1] in {"response.completed", "response.incomplete"}


def test_embeddings(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="e", input=["one", "two"])
    assert len(answer.data) == 2
    assert answer.usage.prompt_tokens > 0


def test_anthropic(stack: Stack) -> None:
    with stack.anthropic() as client:
        message = client.messages.create(model="m", max_tokens=8, messages=HELLO)
        assert message.usage.output_tokens
        with client.messages.stream(model="m", max_tokens=8, messages=HELLO) as stream:
            assert stream.get_final_message().stop_reason
        counted = client.messages.count_tokens(model="m", messages=HELLO)
        assert counted.input_tokens > 0
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="x", max_tokens=8, messages=HELLO)
    with stack.anthropic("wrong") as client, pytest.raises(anthropic.AuthenticationError):
        client.messages.create(model="m", max_tokens=8, messages=HELLO)


def test_anthropic_tools_and_pages(stack: Stack) -> None:
    # A model of noise calls no tool by itself; that one was called is told to it.
    tool: Any = {
        "name": "look",
        "input_schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}},
    }
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"ok": True}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "seen"}]}
    turns: Any = [
        *HELLO,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    with stack.anthropic() as client:
        answer = client.messages.create(
            model="m", max_tokens=8, messages=turns, tools=[tool], system="Be brief."
        )
        assert answer._request_id
        assert answer.stop_reason
        with client.messages.stream(model="m", max_tokens=8, messages=turns, tools=[tool]) as stream:
            kinds = {event.type for event in stream}
        assert {"message_start", "message_stop"} <= kinds
        assert {model.id for model in client.models.list()} == {"m", "e"}
        assert client.models.retrieve("m").display_name == "m"
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="m", max_tokens=16000, messages=HELLO)


def test_errors(stack: Stack, client: openai.OpenAI) -> None:
    with stack.openai("wrong") as stranger, pytest.raises(openai.AuthenticationError) as denied:
        stranger.chat.completions.create(model="m", messages=HELLO)
    assert denied.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="x", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="m", prompt=[5] * 4000, max_tokens=1)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as many:
        client.chat.completions.create(model="m", messages=HELLO, n=99)
    assert (many.value.code, many.value.param) == ("parameter_out_of_bounds", "n")


def test_cancellation_reaches_the_engine(stack: Stack, client: openai.OpenAI) -> None:
    body = {"ignore_eos": True, "min_tokens": 1900}
    with client.completions.create(
        model="m", prompt="One", max_tokens=1900, stream=True, extra_body=body
    ) as stream:
        next(iter(stream))
    ends = time.monotonic() + 20
    while stack.running() and time.monotonic() < ends:
        time.sleep(0.1)
    assert stack.running() == 0


def test_a_clients_timeout_frees_the_engine(stack: Stack) -> None:
    with stack.openai(timeout=0.05, max_retries=1) as hasty, pytest.raises(openai.APITimeoutError):
        hasty.completions.create(
            model="m", prompt="One", max_tokens=1900, extra_body={"ignore_eos": True, "min_tokens": 1900}
        )
    ends = time.monotonic() + 20
    while stack.running() and time.monotonic() < ends:
        time.sleep(0.1)
    assert stack.running() == 0


def test_tokenize(stack: Stack) -> None:
    request = urllib.request.Request(f"{stack.url}/tokenize", b'{"model":"m","prompt":"Hello"}')
    with pytest.raises(urllib.error.HTTPError) as denied:
        urllib.request.urlopen(request, timeout=30)
    assert denied.value.code == 401
    denied.value.close()
    request.add_header("X-API-Key", KEY)
    with urllib.request.urlopen(request, timeout=30) as response:
        assert b'"count"' in response.read()
