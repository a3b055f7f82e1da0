"""A gateway before the real vLLM on the CPU, with a tiny model that talks and one that embeds."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import KEY, write_key
from tests.support.ports import free_port

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

    def __init__(self, url: str, metrics_url: str, engine_url: str, model: Path) -> None:
        self.url = url
        self.model = model
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


@contextlib.contextmanager
def stack_in(folder: Path) -> Iterator[Stack]:
    """The stack, its files in `folder`."""
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
            yield Stack(url, f"http://127.0.0.1:{metrics}/metrics", f"http://127.0.0.1:{talk}", model)
