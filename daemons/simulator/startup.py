"""The start of vLLM as its log tells it, spread over a configurable time, and the ways it fails."""

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemons.runtime.errors import Fatal
from daemons.simulator.options import VLLM_VERSION

_GIB = 2**30
_DEFAULT_CONTEXT = 8192
_DEFAULT_KV_BYTES = 2**17


@dataclass(frozen=True, slots=True)
class Memory:
    """The KV cache of one engine.

    Attributes:
        blocks: how many there are.
        block_size: tokens in each.
        bytes: on one GPU.
    """

    blocks: int
    block_size: int
    bytes: int

    @property
    def tokens(self) -> int:
        """Tokens that fit."""
        return self.blocks * self.block_size


class Log:
    """Lines as vLLM writes them, on standard output."""

    def line(self, process: str, where: str, text: str, level: str = "INFO") -> None:
        """A line of the API server, the engine core or the worker; here they are one process."""
        stamp = time.strftime("%m-%d %H:%M:%S")
        print(f"({process} pid={os.getpid()}) {level} {stamp} [{where}] {text}", flush=True)

    def plain(self, text: str) -> None:
        """A line of uvicorn, of a progress bar or of an exception, on standard error."""
        print(text, file=sys.stderr, flush=True)


def check_model(model: str) -> None:
    """Fail as vLLM does for a folder that is not there.

    Raises:
        Fatal: with the misleading words that vLLM has for it.
    """
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().is_dir():
        raise Fatal(
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
            f"'namespace/repo_name': '{model}'. Use `repo_type` argument if needed."
        )


def context_length(model: str, asked: int | None) -> int:
    """Tokens of context: what was asked for, else what the model's folder says.

    Raises:
        Fatal: more was asked for than the model has.
    """
    derived = _config(model).get("max_position_embeddings")
    if not isinstance(derived, int):
        return asked or _DEFAULT_CONTEXT
    if asked is None:
        return derived
    if asked > derived:
        raise Fatal(
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            f"  Value error, User-specified max_model_len ({asked}) is greater than the derived "
            f"max_model_len (max_position_embeddings={derived} or model_max_length=None in model's "
            "config.json)."
        )
    return asked


def kv_bytes_per_token(model: str) -> int:
    """Keys and values of one token in 16 bits: by the model's folder, else as for Llama 3.1 8B (128 KiB)."""
    config = _config(model)
    heads = _count(config, "num_attention_heads")
    layers = _count(config, "num_hidden_layers")
    if not heads or not layers:
        return _DEFAULT_KV_BYTES
    size = _count(config, "head_dim") or _count(config, "hidden_size") // heads
    kv_heads = _count(config, "num_key_value_heads") or heads
    return 2 * layers * kv_heads * size * 2 or _DEFAULT_KV_BYTES


def _count(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else 0


def _config(model: str) -> dict[str, Any]:
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def plan_memory(
    *,
    max_model_len: int,
    block_size: int,
    kv_bytes: int,
    kv_cache_bytes: int | None,
    blocks_override: int | None,
    gpu_bytes: float,
    utilization: float,
    weight_bytes: float,
    gpus: int,
) -> Memory:
    """Size the KV cache; `kv_bytes` (of one token) and `weight_bytes` are divided over the GPUs.

    Raises:
        Fatal: not even one request of the full context fits.
    """
    per_token = max(1, kv_bytes // gpus)
    available = kv_cache_bytes
    if available is None:
        available = int(gpu_bytes * utilization - weight_bytes / gpus)
    if available <= 0:
        raise Fatal(
            "ValueError: No available memory for the cache blocks. "
            "Try increasing `gpu_memory_utilization` when initializing the engine."
        )
    blocks = blocks_override or available // (per_token * block_size)
    memory = Memory(blocks, block_size, available)
    if memory.tokens < max_model_len:
        needed = max_model_len * per_token / _GIB
        raise Fatal(
            f"ValueError: To serve at least one request with the model's max seq len ({max_model_len}), "
            f"({needed:.2f} GiB KV cache is needed, which is larger than the available KV cache memory "
            f"({available / _GIB:.2f} GiB). Based on the available memory, the estimated maximum model "
            f"length is {memory.tokens}. Try increasing `gpu_memory_utilization` or decreasing "
            "`max_model_len` when initializing the engine."
        )
    return memory


def greet(log: Log, model: str, shown: dict[str, object]) -> None:
    """The first lines, before anything can fail."""
    where = "api_utils.py:347"
    log.line("APIServer", where, f"vLLM version {VLLM_VERSION} (simulated: no model is loaded)")
    log.line("APIServer", where, f"model   {model}")
    log.line("APIServer", "api_utils.py:286", f"non-default args: {shown}")


async def load(
    log: Log, model: str, memory: Memory, max_model_len: int, seconds: float, *, eager: bool
) -> None:
    """Everything between the first lines and the listening server, in about `seconds`."""
    lines = _lines(model, memory, max_model_len, seconds, eager=eager)
    total = sum(share for share, *_ in lines)
    for share, process, where, text in lines:
        if process:
            log.line(process, where, text)
        else:
            log.plain(text)
        await asyncio.sleep(seconds * share / total)


_Timed = tuple[float, str, str, str]


def _lines(model: str, memory: Memory, max_model_len: int, seconds: float, *, eager: bool) -> list[_Timed]:
    """Share of the time that follows the line, process, place in the source, text."""
    size = f"{memory.tokens:,} tokens, Maximum concurrency for {max_model_len:,} tokens per request"
    initialising = f"Initializing a V1 LLM engine (v{VLLM_VERSION}) with config: model='{model}'"
    shards = "Loading safetensors checkpoint shards: {:3d}% Completed | {}/2"
    loading = [
        (2.0, "APIServer", "model.py:733", "Resolved architecture: LlamaForCausalLM"),
        (8.0, "APIServer", "model.py:2152", f"Using max model len {max_model_len}"),
        (5.0, "EngineCore", "core.py:133", initialising),
        (5.0, "Worker", "gpu_model_runner.py:68", f"Starting to load model {model}..."),
        *((10.0, "", "", shards.format(50 * done, done)) for done in range(3)),
        (1.0, "Worker", "default_loader.py:501", f"Loading weights took {0.3 * seconds:.2f} seconds"),
        (
            5.0,
            "Worker",
            "gpu_model_runner.py:5100",
            f"Model loading took 15.0 GiB, {0.4 * seconds:.2f} seconds",
        ),
    ]
    compiling = [
        (3.0, "Worker", "backends.py:540", "Using cache directory: torch_compile_cache"),
        (15.0, "Worker", "backends.py:560", f"Dynamo bytecode transform time: {0.1 * seconds:.2f} s"),
        (15.0, "Worker", "backends.py:300", "Compiling a graph for compile range (1, 2048)"),
    ]
    sizing = [
        (1.0, "Worker", "gpu_worker.py:260", f"Available KV cache memory: {memory.bytes / _GIB:.2f} GiB"),
        (
            1.0,
            "EngineCore",
            "kv_cache_utils.py:2327",
            f"GPU KV cache size: {size}: {memory.tokens / max_model_len:.2f}x",
        ),
    ]
    capturing = [
        (15.0, "Worker", "gpu_model_runner.py:6000", f"Graph capturing finished in {0.1 * seconds:.0f} secs"),
    ]
    took = f"init engine (profile, create kv cache, warmup model) took {0.5 * seconds:.2f} s"
    end = [
        (3.0, "EngineCore", "core.py:402", took),
        (1.0, "APIServer", "entry.py:136", "Supported tasks: ['generate']"),
    ]
    return [*loading, *([] if eager else compiling), *sizing, *([] if eager else capturing), *end]
