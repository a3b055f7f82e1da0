"""The plan, against figures that others published and that vLLM itself computes."""

import argparse
import contextlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from daemons.engine.plan import measured
from daemons.engine.plan.advice import advise
from daemons.engine.plan.cache import BLOCK_TOKENS_CPU, cache_of
from daemons.engine.plan.catalogue import CONFIGS, shapes, weights_of
from daemons.engine.plan.measured import Measurement, Subject
from daemons.engine.plan.memory import GIB, Measured, ledger, parameters
from daemons.engine.plan.shape import read_shape, shape_of
from daemons.engine.plan.weights import weights_in
from daemons.llmctl import plan
from daemons.llmctl.__main__ import main
from daemons.runtime.errors import Fatal

PROJECT = Path(__file__).parents[3]
A6000 = int(47.5 * GIB)

# What vLLM 0.32.0 computes on the catalogue's configurations, for 20 GiB and requests of 8192 tokens:
# written by tests/support/vllm_kv_specs.py, and held against the installed vLLM by test_vllm_agrees.py.
SPECS: dict[str, Any] = json.loads((Path(__file__).with_name("kv_specs.json")).read_text())["models"]
SPEC_BYTES = 20 * GIB
SPEC_CONTEXT = 8192

# Jamba paper (arXiv:2403.19887, table 1): GB of KV cache for 256K tokens in 16 bits.
# DeepSeek-V3 hardware paper (arXiv:2505.09343, table 1): KB (1000 bytes) a token in 16 bits.
# llm-d-planner, empirical vLLM memory results: Mistral-Small 24B.
PUBLISHED = {
    "Llama-2-7B": 128 * GIB // (256 * 1024),
    "Mistral-7B-v0.3": 32 * GIB // (256 * 1024),
    "Mixtral-8x7B": 32 * GIB // (256 * 1024),
    "Jamba-v0.1": 4 * GIB // (256 * 1024),
    "DeepSeek-V3": 70_272,
    "Qwen2.5-72B": 327_680,
    "Llama-3.1-405B": 516_096,
    "Mistral-Small-24B": 163_840,
}


def layers_of(name: str, *kinds: str) -> list[dict[str, Any]]:
    return [layer for layer in SPECS[name]["layers"] if layer["kind"] in kinds]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_kv_bytes_per_token_are_those_of_vllms_own_specification(name: str) -> None:
    full = layers_of(name, "FullAttentionSpec", "MLAAttentionSpec")
    assert cache_of(shapes()[name]).token == sum(
        layer["page"] * layer["count"] // layer["block"] for layer in full
    )


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_kv_bytes_per_token_are_those_that_were_published(name: str) -> None:
    assert cache_of(shapes()[name]).token == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name in CONFIGS if not layers_of(name, "MambaSpec")])
def test_capacity_is_what_vllm_would_log(name: str) -> None:
    block = max(layer["block"] for layer in SPECS[name]["layers"])
    cache = cache_of(shapes()[name], block=block)
    assert cache.tokens(SPEC_BYTES, SPEC_CONTEXT) == SPECS[name]["tokens"]


@pytest.mark.parametrize("name", [name for name in CONFIGS if layers_of(name, "MambaSpec")])
def test_the_state_of_other_layers_is_that_of_vllms_own_specification(name: str) -> None:
    (layer,) = layers_of(name, "MambaSpec")
    shape = shapes()[name]
    assert (shape.state, shape.other_layers) == (layer["page"], layer["count"])


@pytest.mark.parametrize("name", list(CONFIGS))
def test_weights_are_the_parameters_that_vllm_builds(name: str) -> None:
    count = weights_of(name, "none") / 2
    assert count == pytest.approx(SPECS[name]["parameters"], rel=5e-4)


def test_tensor_parallelism_divides_heads_but_not_latents() -> None:
    known = shapes()
    assert cache_of(known["Llama-3-70B"], 2).token == 160 * 1024
    assert cache_of(known["Llama-3-70B"], 16).token == 40 * 1024  # one head is the least
    assert cache_of(known["DeepSeek-V3"], 8).token == 70_272
    assert cache_of(known["Llama-3-70B"], 1, element_bytes=1).token == 160 * 1024  # fp8


def test_windows_cost_once_a_request() -> None:
    oss = shapes()["gpt-oss-20b"]
    assert (oss.full_layers, oss.window_layers) == (12, 12)
    cache = cache_of(oss)
    # 127 tokens of the window and 2048 of a step, in blocks of 16, and one more.
    once = 12 * 2 * 8 * 64 * 2 * (137 * 16)
    assert cache.request(100_000) == 100_000 * cache.token + once
    assert cache_of(shapes()["Llama-3-70B"]).request(16) == 16 * 320 * 1024


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
    assert round(weights_of(name, quantization) / 1e9, 1) == gb


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
    assert cache_of(smol, block=BLOCK_TOKENS_CPU).tokens(64 << 20, 1024) == 2816


def test_headroom_is_what_remains_after_everything_else() -> None:
    one = ledger(shapes()["Llama-3.1-8B"], 16_060_000_000, A6000)
    assert one.kv_cache == one.budget - one.weights - one.activation - one.graphs - one.other
    assert one.tokens(8192) == pytest.approx(one.kv_cache / one.cache.token, abs=8192 / 16)
    assert 24 * GIB < one.kv_cache < 28 * GIB
    assert one.users(8192) == pytest.approx(one.kv_cache / (8192 * 128 * 1024), rel=1e-3)


def test_what_was_measured_takes_the_place_of_the_estimates(tmp_path: Path) -> None:
    llama = shapes()["Llama-3.1-8B"]
    subject = Subject("org/llama", "0.32.0", "RTX A6000", 1, 256)
    measured.keep(tmp_path, Measurement(subject, 15 * GIB, 3 * GIB))
    measured.keep(tmp_path, Measurement(subject, 15 * GIB, 2 * GIB))
    kept = measured.read(tmp_path)
    assert measured.find(kept, subject) == Measured(15 * GIB, 2 * GIB)
    assert measured.find(kept, Subject("org/llama", "0.33.0", "RTX A6000", 1, 256)) is None
    known = ledger(llama, 16_060_000_000, A6000, measured=kept[0].bytes_of_gpu)
    assert known.kv_cache == known.budget - 17 * GIB
    (tmp_path / measured.FILE).write_text("{")
    assert measured.read(tmp_path) == []


def test_advice_prefers_replicas_where_one_card_holds_the_model() -> None:
    known = shapes()

    def advice(name: str, quantization: str | None = None, **more: Any) -> Any:
        return advise(known[name], weights_of(name, quantization), A6000, gpus=2, context=8192, **more)

    small = advice("Llama-3.1-8B")
    assert (small.tensor_parallel, small.replicas) == (1, 2)
    big = advice("Llama-3-70B", "awq")
    assert (big.tensor_parallel, big.replicas) == (2, 1)
    halved = advice("Llama-3-70B", "awq", kv_element_bytes=1)
    assert halved.ledger.users(8192) == pytest.approx(2 * big.ledger.users(8192), rel=1e-3)
    assert halved.kv_bytes_per_token == 160 * 1024
    none = advice("Llama-3-70B")
    assert none.tensor_parallel == 0
    assert "GiB short" in none.reason
    assert none.ledger.users(8192) == 0
    assert advice("Llama-3-70B", measured={2: Measured(40 * GIB, GIB)}).tensor_parallel == 2


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


def llmctl(*words: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    plan.add_parser(parser.add_subparsers())
    args = parser.parse_args(["plan", *words])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status: int = args.run(args)
    return status, said.getvalue()


A6000S = ("--gpus", "2", "--gpu-memory", "47.5")


def test_llmctl_plan() -> None:
    status, said = llmctl("Llama-3.1-8B", *A6000S, "--json")
    (answer,) = json.loads(said)
    assert status == 0
    assert answer["kv_bytes_per_token"] == 131072
    assert answer["advice"]["replicas"] == 2
    assert answer["ledger"]["kv_cache"] > 24 * GIB
    status, said = llmctl("Llama-3-70B", *A6000S)
    assert status == 1
    assert "GiB short" in said
    assert "with --quantization int8 it would: 2 GPUs," in " ".join(said.split())
    status, said = llmctl("Llama-3-70B", *A6000S, "--quantization", "awq", "--kv-cache-dtype", "fp8")
    assert status == 0
    assert "160.0" in said
    assert "[#######" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "0"], "--gpus: expected a number above 0\nname a model, or give --all"),
        (["m", "--utilization", "2"], "--utilization: expected a share"),
        (["m", "--all"], "name a model, or give --all"),
        (["no-such-model"], "is neither a folder, nor ORGANISATION/NAME, nor one of: Llama-2-7B"),
        (["/no/such/folder"], "is neither a folder"),
    ],
)
def test_llmctl_plan_refuses(words: list[str], said: str) -> None:
    with pytest.raises(Fatal, match=said) as refused:
        llmctl(*words, "--gpu-memory", "47.5", *([] if "--gpus" in words else ["--gpus", "1"]))
    assert refused.value.exit_code == 78


def test_a_folder_is_planned_by_its_headers(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 128,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    header: dict[str, object] = {"a": {"dtype": "BF16", "shape": [64, 512], "data_offsets": [0, 65536]}}
    safetensors(tmp_path / "model.safetensors", header, 65536)
    status, said = llmctl(str(tmp_path), *A6000S, "--json")
    assert status == 0
    assert json.loads(said)[0]["weights_bytes"] == 65536


def test_the_documented_table_is_what_is_printed() -> None:
    _, said = llmctl("--all", *A6000S)
    printed = "\n".join(line.rstrip() for line in said.splitlines()).strip("\n")
    assert printed in (PROJECT / "docs" / "memory-plan.md").read_text()


def test_a_quantization_that_is_unknown_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "Llama-3.1-8B", "--gpus", "1", "--gpu-memory", "24", "--quantization", "q4"]
    assert main(words) == 78
    assert "'q4' is unknown; known are awq, gptq, int4" in capfd.readouterr().err


def test_a_plan_that_fits_ends_with_what_to_configure(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "Llama-3.1-8B", "--gpus", "1", "--gpu-memory", "47.5", "--context"]
    assert main([*words, "4096"]) == 0
    text = capfd.readouterr().out
    assert "  tensor_parallel_size: 1\n  max_model_len: 4096\n  max_num_seqs: " in text
    assert main([*words, "10000000"]) == 1
    text = " ".join(capfd.readouterr().out.split())
    assert "take a shorter context, or a quantized or smaller model" in text
    assert "tensor_parallel_size" not in text
