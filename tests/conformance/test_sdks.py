"""The official clients against the gateway before the real vLLM: what users will do on the first day."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import KEY, write_key

pytestmark = [pytest.mark.vllm, pytest.mark.sdks, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]
VLLM = PROJECT / ".venv-vllm" / "bin"
START_SECONDS = 300.0
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TORCHDYNAMO_DISABLE": "1"}
COMMON = [
    "--max-num-seqs",
    "8",
    "--enforce-eager",
    "--kv-cache-memory-bytes",
    "67108864",
    "--host",
    "127.0.0.1",
]
TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
HELLO: Any = [{"role": "user", "content": "Say hello."}]


def free_port() -> int:
    """A port that was free a moment ago: vLLM does not say which one it took."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def wait_for(url: str, seconds: float, process: "subprocess.Popen[bytes]") -> None:
    """Until `url` answers 200."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        assert process.poll() is None, "the process ended while starting"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as response:
            if response.status == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


@contextlib.contextmanager
def process(command: list[str], log: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends with the context."""
    with log.open("wb") as out:
        made = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        yield made
    finally:
        made.terminate()
        try:
            made.wait(60)
        except subprocess.TimeoutExpired:
            made.kill()
            made.wait()


class Stack:
    """A gateway before two engines: model ``m`` talks, model ``e`` embeds."""

    def __init__(self, url: str, metrics_url: str, engine_url: str) -> None:
        self.url = url
        self.metrics_url = metrics_url
        self.engine_url = engine_url

    def openai(self, key: str = KEY, **more: Any) -> openai.OpenAI:
        """The OpenAI client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **more)

    def anthropic(self, key: str = KEY) -> anthropic.Anthropic:
        """The Anthropic client."""
        return anthropic.Anthropic(base_url=self.url, api_key=key)

    def running(self) -> float:
        """Requests that the talking engine works on."""
        with urllib.request.urlopen(f"{self.engine_url}/metrics", timeout=20) as response:
            families = text_string_to_metric_families(response.read().decode())
        return sum(s.value for f in families for s in f.samples if f.name == "vllm:num_requests_running")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if not (VLLM / "vllm").exists():
        pytest.skip("no vLLM: .venv-vllm is not installed")
    folder = tmp_path_factory.mktemp("conformance")
    model = folder / "tiny"
    builder = PROJECT / "tests" / "support" / "build_tiny_model.py"
    subprocess.run([VLLM / "python", builder, model], check=True, timeout=300, capture_output=True)
    talk, embed, port, metrics = (free_port() for _ in range(4))
    serve = [str(VLLM / "vllm"), "serve", str(model), *COMMON]
    talking = [*serve, "--port", str(talk), "--served-model-name", "m", "--max-model-len", "2048", *TOOLS]
    embedding = [*serve, "--port", str(embed), "--served-model-name", "e", "--max-model-len", "512"]
    embedding += ["--runner", "pooling", "--convert", "embed"]
    write_key(folder / "keys.d", "team")
    engines = [
        {"name": "talk", "url": f"http://127.0.0.1:{talk}", "models": ["m"]},
        {"name": "embed", "url": f"http://127.0.0.1:{embed}", "models": ["e"]},
    ]
    config = {"listen": {"port": port}, "metrics": {"port": metrics}, "engines": engines}
    (folder / "gateway.yaml").write_text(yaml.safe_dump(config))
    gateway = [sys.executable, "-m", "daemons.gateway", "--config", str(folder / "gateway.yaml")]
    with (
        process(talking, folder / "talk.log", **QUIET) as one,
        process(embedding, folder / "embed.log", **QUIET) as two,
    ):
        wait_for(f"http://127.0.0.1:{talk}/health", START_SECONDS, one)
        wait_for(f"http://127.0.0.1:{embed}/health", START_SECONDS, two)
        with process(gateway, folder / "gateway.log") as three:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/ready", 60, three)
            yield Stack(url, f"http://127.0.0.1:{metrics}/metrics", f"http://127.0.0.1:{talk}")


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with stack.openai() as made:
        yield made


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
        max_tokens=60,
        tools=[{"type": "function", "function": {"name": "look", "parameters": schema}}],
        tool_choice={"type": "function", "function": {"name": "look"}},
    )
    calls = called.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "look"


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
