"""The start: memory plan, context length, log lines in vLLM's order, vLLM's errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from daemons.runtime.errors import Fatal
from daemons.simulator import startup

GIB = 2**30
PLAN: dict[str, Any] = {
    "max_model_len": 8192,
    "block_size": 16,
    "kv_bytes": 2**17,
    "kv_cache_bytes": None,
    "blocks_override": None,
    "gpu_bytes": 48.0 * GIB,
    "utilization": 0.9,
    "weight_bytes": 16.0 * GIB,
    "gpus": 1,
}


def test_the_cache_gets_what_the_weights_leave() -> None:
    memory = startup.plan_memory(**PLAN)
    assert memory.tokens == pytest.approx(27.2 * GIB / 2**17, rel=0.001)


def test_two_gpus_hold_more_than_twice_as_much() -> None:
    one, two = startup.plan_memory(**PLAN), startup.plan_memory(**{**PLAN, "gpus": 2})
    assert two.tokens > 2 * one.tokens


def test_a_given_size_wins() -> None:
    assert startup.plan_memory(**{**PLAN, "kv_cache_bytes": 2 * GIB}).tokens == 16384


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_cache_bytes": 2**20}, "estimated maximum model length is 0"),
        ({"max_model_len": 10**6}, "To serve at least one request"),
        ({"utilization": 0.1}, "No available memory for the cache blocks"),
    ],
)
def test_too_little_memory_is_said_in_vllms_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Fatal, match=message) as fault:
        startup.plan_memory(**{**PLAN, **change})
    assert fault.value.exit_code == 1


def test_a_folder_that_is_not_there_has_vllms_misleading_words(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="Repo id must be in the form"):
        startup.check_model(str(tmp_path / "none"))
    startup.check_model(str(tmp_path))
    startup.check_model("org/name")


def folder(tmp_path: Path, **config: object) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_the_context_is_the_models_own(tmp_path: Path) -> None:
    model = folder(tmp_path, max_position_embeddings=2048)
    assert startup.context_length(model, None) == 2048
    assert startup.context_length(model, 1024) == 1024
    with pytest.raises(Fatal, match="is greater than the derived max_model_len"):
        startup.context_length(model, 4096)


def test_a_mere_name_has_a_default_context() -> None:
    assert startup.context_length("some/name", None) == 8192
    assert startup.context_length("some/name", 10**6) == 10**6


def test_the_cache_of_a_token_follows_the_models_shape(tmp_path: Path) -> None:
    smollm = folder(
        tmp_path, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=30, hidden_size=576
    )
    assert startup.kv_bytes_per_token(smollm) == 2 * 30 * 3 * 64 * 2
    assert startup.kv_bytes_per_token("some/name") == 2**17


@pytest.mark.parametrize("content", ["", "[]", '{"max_position_embeddings": "x", "num_hidden_layers": -1}'])
def test_a_strange_model_folder_changes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert startup.context_length(str(tmp_path), None) == 8192
    assert startup.kv_bytes_per_token(str(tmp_path)) == 2**17


@pytest.mark.parametrize("eager", [True, False])
async def test_the_log_lines_come_in_order(eager: bool, capsys: pytest.CaptureFixture[str]) -> None:
    memory = startup.plan_memory(**PLAN)
    log = startup.Log()
    startup.greet(log, "m", {"model": "m"})
    await startup.load(log, "m", memory, 8192, 0.0, eager=eager)
    text = capsys.readouterr().out
    lines = [
        "non-default args",
        "Resolved architecture",
        "Initializing a V1 LLM engine",
        "Starting to load model",
        "Loading weights took",
        "Model loading took",
        *([] if eager else ["Using cache directory", "Dynamo bytecode transform time", "Compiling a graph"]),
        "Available KV cache memory",
        "GPU KV cache size",
        *([] if eager else ["Graph capturing finished"]),
        "init engine",
    ]
    places = [text.find(line) for line in lines]
    assert -1 not in places
    assert places == sorted(places)
    assert ("Compiling" in text) is not eager
