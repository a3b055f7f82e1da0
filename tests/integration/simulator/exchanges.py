"""Requests whose answers are compared, in shape, between the simulator and a real vLLM.

An answer is reduced to what a client relies on: status, keys and types, order of events, error bodies.
Numbers in error messages become ``N``; equal events that follow each other count once, since how many
tokens share a chunk depends on the load.
"""

import http.client
import json
import re
from dataclasses import dataclass, field
from typing import Any

MODEL = "m"
FLAGS = ["--served-model-name", MODEL, "--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager"]
"""How a server is started for these requests."""

Reduced = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One request; a body given as text is sent as it is."""

    name: str
    path: str
    body: Any = None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def _chat(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello there"}]
    return {
        "model": MODEL,
        "messages": messages,
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
        **changes,
    }


def _completion(**changes: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": "Hello there",
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
        **changes,
    }


def _message(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello"}]
    return {"model": MODEL, "max_tokens": 24, "messages": messages, **changes}


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
LONG = "Hello there my dear " * 2000
USAGE = {"include_usage": True}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}

CASES = [
    Case("health", "/health", method="GET"),
    Case("ping", "/ping", method="GET"),
    Case("version", "/version", method="GET"),
    Case("load", "/load", method="GET"),
    Case("models", "/v1/models", method="GET"),
    Case("chat", CHAT, _chat()),
    Case("chat of two", CHAT, _chat(n=2, temperature=1)),
    Case("chat with logprobs", CHAT, _chat(logprobs=True, top_logprobs=2)),
    Case("chat without a model", CHAT, _chat(model=None)),
    Case("chat with unknown fields", CHAT, _chat(unknown=1)),
    Case("chat with max_completion_tokens", CHAT, _chat(max_tokens=None, max_completion_tokens=2)),
    Case("chat streamed", CHAT, _chat(stream=True)),
    Case("chat streamed, usage", CHAT, _chat(stream=True, stream_options=USAGE)),
    Case("chat streamed, continuous usage", CHAT, _chat(stream=True, stream_options=CONTINUOUS)),
    Case("completion", COMPLETIONS, _completion()),
    Case("completion of two", COMPLETIONS, _completion(n=2, temperature=1)),
    Case("completion of two prompts", COMPLETIONS, _completion(prompt=["a b", "c d"])),
    Case("completion of tokens", COMPLETIONS, _completion(prompt=[5, 6, 7])),
    Case("completion with logprobs", COMPLETIONS, _completion(logprobs=1)),
    Case("completion with echo", COMPLETIONS, _completion(echo=True)),
    Case("completion that fills the context", COMPLETIONS, _completion(prompt=[5] * 1020)),
    Case("completion streamed", COMPLETIONS, _completion(stream=True)),
    Case("completion streamed, usage", COMPLETIONS, _completion(stream=True, stream_options=USAGE)),
    Case("completion streamed, continuous", COMPLETIONS, _completion(stream=True, stream_options=CONTINUOUS)),
    Case("completion streamed with logprobs", COMPLETIONS, _completion(stream=True, logprobs=1)),
    Case("invocations", "/invocations", _chat()),
    Case("messages", MESSAGES, _message()),
    Case("messages streamed", MESSAGES, _message(stream=True)),
    Case("messages with system", MESSAGES, _message(system=[{"type": "text", "text": "Be brief."}])),
    Case("count_tokens", f"{MESSAGES}/count_tokens", {"model": MODEL, "messages": _message()["messages"]}),
    Case("responses", RESPONSES, {"model": MODEL, "input": "Hello", "max_output_tokens": 4}),
    Case(
        "responses streamed",
        RESPONSES,
        {"model": MODEL, "input": "x", "max_output_tokens": 9, "stream": True},
    ),
    Case("tokenize", "/tokenize", {"model": MODEL, "prompt": "Hello there"}),
    Case("tokenize a chat", "/tokenize", {"model": MODEL, "messages": _message()["messages"]}),
    Case("tokenize with strings", "/tokenize", {"prompt": "Hello there", "return_token_strs": True}),
    Case("detokenize", "/detokenize", {"model": MODEL, "tokens": [5, 6, 7]}),
    Case("no JSON", CHAT, '{"model": '),
    Case("no body", CHAT, ""),
    Case("no object", CHAT, "[1]"),
    Case("no JSON, messages", MESSAGES, "{"),
    Case("wrong content type", CHAT, _chat(), headers={"Content-Type": "text/plain"}),
    Case("unknown model, chat", CHAT, _chat(model="nope")),
    Case("unknown model, streamed", CHAT, _chat(model="nope", stream=True)),
    Case("unknown model, completion", COMPLETIONS, _completion(model="nope")),
    Case("unknown model, messages", MESSAGES, _message(model="nope")),
    Case("unknown model, responses", RESPONSES, {"model": "nope", "input": "Hello"}),
    Case("unknown model, tokenize", "/tokenize", {"model": "nope", "prompt": "x"}),
    Case("no messages", CHAT, {"model": MODEL}),
    Case("empty messages", CHAT, _chat(messages=[])),
    Case("no prompt", COMPLETIONS, {"model": MODEL}),
    Case("empty prompt", COMPLETIONS, _completion(prompt="")),
    Case("no messages, messages", MESSAGES, {"model": MODEL}),
    Case("no input, responses", RESPONSES, {"model": MODEL}),
    Case("no prompt, tokenize", "/tokenize", {"model": MODEL}),
    Case("no tokens, detokenize", "/detokenize", {"model": MODEL}),
    Case("no previous response", RESPONSES, {"model": MODEL, "input": "x", "previous_response_id": "resp_1"}),
    Case("wrong type", CHAT, _chat(max_tokens="many")),
    Case("wrong type of temperature", CHAT, _chat(temperature="x")),
    Case("max_tokens too large", CHAT, _chat(max_tokens=100000)),
    Case("max_tokens too large, messages", MESSAGES, _message(max_tokens=100000)),
    Case("max_tokens 0", CHAT, _chat(max_tokens=0)),
    Case("max_tokens -1", CHAT, _chat(max_tokens=-1)),
    Case("max_tokens 0, messages", MESSAGES, _message(max_tokens=0)),
    Case("prompt too long", CHAT, _chat(messages=[{"role": "user", "content": LONG}])),
    Case("prompt too long, completion", COMPLETIONS, _completion(prompt=LONG)),
    Case("prompt too long, tokens", COMPLETIONS, _completion(prompt=[5] * 1500)),
    Case("prompt too long, messages", MESSAGES, _message(messages=[{"role": "user", "content": LONG}])),
    Case("no room for an answer", COMPLETIONS, _completion(prompt=[5] * 1024)),
    Case("temperature -1", CHAT, _chat(temperature=-1)),
    Case("top_p 2", CHAT, _chat(top_p=2)),
    Case("min_p 2", CHAT, _chat(min_p=2)),
    Case("frequency_penalty 5", CHAT, _chat(frequency_penalty=5)),
    Case("n 0", CHAT, _chat(n=0)),
    Case("n too large", CHAT, _chat(n=100000)),
    Case("n 2, greedy", CHAT, _chat(n=2)),
    Case("empty stop", CHAT, _chat(stop=[""])),
    Case("min_tokens over max_tokens", CHAT, _chat(min_tokens=10, max_tokens=5)),
    Case("stream options without stream", CHAT, _chat(stream_options=USAGE)),
    Case("top_logprobs without logprobs", CHAT, _chat(top_logprobs=3)),
    Case("top_logprobs too large", CHAT, _chat(logprobs=True, top_logprobs=50)),
    Case("tool_choice without tools", CHAT, _chat(tool_choice="auto")),
    Case("embeddings of a generator", "/v1/embeddings", {"model": MODEL, "input": "hello"}),
    Case("unknown path", "/nope", method="GET"),
    Case("unknown path below v1", "/v1/nope", {}),
    Case("wrong method", CHAT, method="GET"),
    Case("wrong method, health", "/health", {}),
]


def ask(port: int, case: Case) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send the request of `case`; returns status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        data = case.body if isinstance(case.body, str) else json.dumps(case.body)
        body = None if case.body is None else data.encode()
        connection.request(case.method, case.path, body, {"Content-Type": "application/json", **case.headers})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def reduce(status: int, headers: http.client.HTTPMessage, body: bytes) -> Reduced:
    """What of an answer is compared."""
    kind = headers.get("Content-Type", "")
    reduced: Reduced = {"status": status, "type": kind}
    if "Allow" in headers:
        reduced["allow"] = headers["Allow"]
    if kind.startswith("text/event-stream"):
        return {**reduced, "events": events_of(body.decode())}
    if not body:
        return {**reduced, "body": None}
    value = json.loads(body)
    return {**reduced, "body": shape(value) if status < 400 else masked(value)}


def events_of(text: str) -> list[Any]:
    """Name and shape of each event, equal neighbours once."""
    events: list[Any] = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line)
        if not lines:
            continue
        data = lines["data"]
        event = data if data == "[DONE]" else {"event": lines.get("event"), "data": shape(json.loads(data))}
        if not events or events[-1] != event:
            events.append(event)
    return events


def shape(value: Any, key: str = "") -> Any:
    """`value` with every scalar replaced by its type; equal items of a list once."""
    if isinstance(value, dict):
        if key == "top_logprobs":
            return {"<token>": "float"}
        return {name: shape(item, name) for name, item in value.items()}
    if isinstance(value, list):
        if key == "bytes":
            return ["int"]
        items: list[Any] = []
        for item in value:
            each = shape(item, key if key == "top_logprobs" and isinstance(item, dict) else "")
            if each not in items:
                items.append(each)
        return items
    if key in ("finish_reason", "object", "type", "status"):
        return value
    return type(value).__name__


def masked(value: Any) -> Any:
    """`value` with the numbers in its texts replaced by ``N``."""
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    return re.sub(r"-?\d+(\.\d+)?", "N", value) if isinstance(value, str) else value
