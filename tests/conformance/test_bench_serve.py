"""vLLM's own load tester runs through the gateway unchanged, and both count the same tokens."""

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.support.gateway import KEY
from tests.support.vllm_stack import QUIET, VLLM, Stack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PROMPTS, TOKENS = 12, 16


def _tokens(stack: Stack) -> dict[str, float]:
    with urllib.request.urlopen(stack.metrics_url, timeout=30) as response:
        lines = (line.rpartition(" ") for line in response.read().decode().splitlines())
    start = 'llm_gateway_tokens_total{key="team",kind="'
    return {
        name.removeprefix(start).split('"')[0]: float(v) for name, _, v in lines if name.startswith(start)
    }


@pytest.mark.parametrize(
    ("backend", "path"), [("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")]
)
def test_vllm_bench_serve(stack: Stack, tmp_path: Path, backend: str, path: str) -> None:
    before = _tokens(stack)
    command = [str(VLLM / "vllm"), "bench", "serve", "--backend", backend, "--endpoint", path]
    command += ["--base-url", stack.url, "--model", "m", "--tokenizer", str(stack.model)]
    command += ["--dataset-name", "random", "--random-input-len", "32", "--random-output-len", str(TOKENS)]
    command += ["--num-prompts", str(PROMPTS), "--max-concurrency", "4", "--ignore-eos"]
    command += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json"]
    environment = {**os.environ, **QUIET, "OPENAI_API_KEY": KEY}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result.get("failed", 0)) == (PROMPTS, 0)
    assert result["total_output_tokens"] == PROMPTS * TOKENS
    after = _tokens(stack)
    assert after["completion"] - before.get("completion", 0) == PROMPTS * TOKENS
    assert after["prompt"] - before.get("prompt", 0) >= PROMPTS * 32
