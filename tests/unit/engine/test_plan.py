"""The plan, against figures that others published."""

import argparse
import json
import struct
from pathlib import Path

import pytest

from daemons.engine.plan.advice import advise
from daemons.engine.plan.catalogue import shapes
from daemons.engine.plan.memory import (
    BLOCK_TOKENS_CPU,
    GIB,
    estimated_weights,
    kv_bytes_per_sequence,
    kv_bytes_per_token,
    kv_tokens,
    ledger,
    parameters,
)
from daemons.engine.plan.shape import read_shape, shape_of
from daemons.engine.plan.weights import weights_in
from daemons.llmctl import plan
from daemons.runtime.errors import Fatal

A6000 = int(47.5 * GIB)

# Jamba paper (arXiv:2403.19887, table 1): GB of KV cache for 256K tokens in 16 bits.
# DeepSeek-V3 hardware paper (arXiv:2505.09343, table 1): KB (1000 bytes) a token in 16 bits.
# llm-d-planner, empirical vLLM memory results: Mistral-Small 24B.
# vLLM 0.32's KV-cache specification of these configs: 2 · heads · head size · 2 bytes in each full layer.
PUBLISHED = {
    "Llama-2-7B": 128 * GIB // (256 * 1024),
    "Mistral-7B-v0.3": 32 * GIB // (256 * 1024),
    "Mixtral-8x7B": 32 * GIB // (256 * 1024),
    "Jamba-v0.1": 4 * GIB // (256 * 1024),
    "DeepSeek-V3": 70_272,
    "Qwen2.5-72B": 327_680,
    "Llama-3.1-405B": 516_096,
    "Mistral-Small-24B": 163_840,
    "Llama-3-70B": 320 * 1024,
    "Llama-3.1-8B": 128 * 1024,
    "Qwen3-32B": 256 * 1024,
    "gpt-oss-20b": 24 * 1024,
    "Gemma-3-27B": 10 * 2 * 16 * 128 * 2,
    "Qwen3-Next-80B-A3B": 12 * 2 * 2 * 256 * 2,
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_kv_bytes_per_token(name: str) -> None:
    assert kv_bytes_per_token(shapes()[name]) == PUBLISHED[name]


def test_tensor_parallelism_divides_heads_but_not_latents() -> None:
    known = shapes()
    assert kv_bytes_per_token(known["Llama-3-70B"], 2) == 160 * 1024
    assert kv_bytes_per_token(known["Llama-3-70B"], 16) == 40 * 1024  # one head is the least
    assert kv_bytes_per_token(known["DeepSeek-V3"], 8) == 70_272
    assert kv_bytes_per_token(known["Llama-3-70B"], 1, element_bytes=1) == 160 * 1024  # fp8


def test_windows_cost_once_a_request() -> None:
    oss = shapes()["gpt-oss-20b"]
    assert (oss.full_layers, oss.window_layers) == (12, 12)
    assert kv_bytes_per_sequence(oss) == 12 * 2 * 8 * 64 * 2 * (128 + 2048)
    assert kv_bytes_per_sequence(shapes()["Llama-3-70B"]) == 0


@pytest.mark.parametrize(
    ("name", "quantization", "gb"),
    [
        ("Mixtral-8x7B", "int8", 47.0),
        ("Mixtral-8x7B", None, 93.4),
        ("Llama-3-70B", "awq", 39.8),
        ("Llama-3-70B", None, 141.1),
        ("Llama-3.1-8B", None, 16.1),
        ("Llama-2-7B", None, 13.5),
    ],
)
def test_weights_in_gb(name: str, quantization: str | None, gb: float) -> None:
    assert round(estimated_weights(shapes()[name], quantization) / 1e9, 1) == gb


def test_parameters_are_those_on_the_model_card() -> None:
    assert round(sum(parameters(shapes()["Llama-3-70B"])) / 1e9, 1) == 70.6
    assert round(sum(parameters(shapes()["Mixtral-8x7B"])) / 1e9, 1) == 46.7


def test_real_vllm_on_the_cpu_said_the_same_number_of_tokens() -> None:
    # Its log for SmolLM2-135M with 64 MiB: "CPU KV cache size: 2,816 tokens".
    smol = shape_of(
        {
            "num_hidden_layers": 30,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "torch_dtype": "bfloat16",
        }
    )
    assert kv_tokens(smol, 64 << 20, BLOCK_TOKENS_CPU) == 2816


def test_headroom_is_what_remains_after_everything_else() -> None:
    one = ledger(shapes()["Llama-3.1-8B"], 16_060_000_000, A6000)
    assert one.kv_cache == one.budget - one.weights - one.activation - one.graphs - one.other
    assert one.tokens == one.kv_cache // (16 * one.token) * 16
    assert 24 * GIB < one.kv_cache < 28 * GIB
    assert one.users(8192) == pytest.approx(one.kv_cache / (8192 * one.token))


def test_advice_prefers_replicas_where_one_card_holds_the_model() -> None:
    known = shapes()
    small = advise(
        known["Llama-3.1-8B"], estimated_weights(known["Llama-3.1-8B"]), A6000, gpus=2, context=8192
    )
    assert (small.tensor_parallel, small.replicas) == (1, 2)
    big = advise(
        known["Llama-3-70B"], estimated_weights(known["Llama-3-70B"], "awq"), A6000, gpus=2, context=8192
    )
    assert (big.tensor_parallel, big.replicas) == (2, 1)
    none = advise(known["Llama-3-70B"], estimated_weights(known["Llama-3-70B"]), A6000, gpus=2, context=8192)
    assert none.tensor_parallel == 0
    assert "GiB short" in none.reason
    assert none.ledger.users(8192) == 0


def safetensors(path: Path, header: dict[str, object], data: int) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * data)


def test_weights_are_read_from_headers(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]},
        "b": {"dtype": "I32", "shape": [2], "data_offsets": [64, 72]},
    }
    safetensors(tmp_path / "model.safetensors", header, 72)
    assert weights_in(tmp_path) == 72
    safetensors(tmp_path / "model.safetensors", header, 71)
    with pytest.raises(Fatal, match="is cut off"):
        weights_in(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"<html>not a model</html>")
    with pytest.raises(Fatal, match="is no safetensors file"):
        weights_in(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x-1.safetensors"}}')
    with pytest.raises(Fatal, match=r"lacks x-1\.safetensors"):
        weights_in(tmp_path)


def test_a_config_that_is_no_transformer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="it does not exist"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unet"}')
    with pytest.raises(Fatal, match="lacks 'n_head'"):
        read_shape(tmp_path)


def test_llmctl_plan(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    plan.add_parser(parser.add_subparsers())
    args = parser.parse_args(["plan", "Llama-3.1-8B", "--gpus", "2", "--gpu-memory", "47.5", "--json"])
    assert args.run(args) == 0
    answer = json.loads(capsys.readouterr().out)["Llama-3.1-8B"]
    assert answer["kv_bytes_per_token"] == 131072
    assert answer["advice"]["replicas"] == 2
    args = parser.parse_args(["plan", "--all", "--gpus", "2", "--gpu-memory", "47.5"])
    assert args.run(args) == 0
    assert "Mixtral-8x7B" in capsys.readouterr().out
    args = parser.parse_args(["plan", "Llama-3-70B", "--gpus", "2", "--gpu-memory", "47.5"])
    assert args.run(args) == 1
    assert "GiB short" in capsys.readouterr().out
