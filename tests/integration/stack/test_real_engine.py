"""`make up` with the real vLLM: a conversation, and the loss of the engine under a stream."""

import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from daemons.llmctl.up.processes import descendants_of
from tests.integration.stack.conftest import Up

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
DEADLINE_SEC = 240.0


def _client(up: Up) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{up.url}/v1", api_key=up.key, max_retries=0, timeout=120)


def _ask(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(
        model="llama-7b",
        messages=QUESTION,
        max_tokens=30,
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    return answer.choices[0].message.content or ""


def _ready(up: Up) -> int:
    try:
        with urllib.request.urlopen(f"{up.url}/ready?wait=0", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _until_ready_is(up: Up, status: int) -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while _ready(up) != status:
        assert time.monotonic() < deadline, f"/ready never became {status}"
        time.sleep(0.05)


def _engine_core(up: Up) -> int:
    for pid in descendants_of(up.process.pid):
        with contextlib.suppress(OSError):
            if "EngineCore" in Path(f"/proc/{pid}/comm").read_text():
                return pid
            if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise AssertionError("no EngineCore process")


def test_the_official_sdk_gets_a_sensible_answer(real: Up) -> None:
    with _client(real) as client:
        assert "Paris" in _ask(client)


def test_the_official_sdk_gets_it_streamed(real: Up) -> None:
    with _client(real) as client:
        stream = client.chat.completions.create(
            model="llama-7b",
            messages=QUESTION,
            max_tokens=30,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 3
    assert "Paris" in "".join(pieces)


def test_a_killed_engine_core_is_told_to_clients_and_replaced(real: Up) -> None:
    body = {"model": "llama-7b", "prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"{real.url}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {real.key}", "Content-Type": "application/json"},
    )
    assert _ready(real) == 200
    with urllib.request.urlopen(request, timeout=120) as stream:
        assert stream.readline().startswith(b"data: ")
        os.kill(_engine_core(real), signal.SIGKILL)
        rest = stream.read().decode()
    assert '"error"' in rest
    assert "[DONE]" not in rest
    _until_ready_is(real, 503)
    _until_ready_is(real, 200)
    with _client(real) as client:
        assert "Paris" in _ask(client)


def test_ctrl_c_leaves_no_process(real: Up) -> None:
    before = descendants_of(real.process.pid)
    assert len(before) >= 5
    assert real.interrupt() == 0
    assert real.processes() == []
