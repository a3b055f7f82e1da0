"""What vLLM itself makes of model configurations, without weights.

Usage, with the Python of a vLLM environment: ``python vllm_kv_specs.py CONFIGS CACHE_BYTES CONTEXT``, where
CONFIGS is a JSON file of ``config.json`` contents by name. Each model is built on the meta device. Printed as
JSON: the KV-cache specification of its layers, the capacity that vLLM would log for CACHE_BYTES and requests
of CONTEXT tokens, and its parameters.
"""

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",
}

import torch
import vllm
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.v1.core.kv_cache_utils import (
    generate_scheduler_kv_cache_config,
    get_kv_cache_capacity,
    get_kv_cache_configs,
)
from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec


def main(configs: dict[str, dict[str, Any]], cache_bytes: int, context: int) -> None:
    """Print what vLLM makes of `configs`."""
    # Groups for experts are made once, and only under a model that has experts.
    names = sorted(configs, key=lambda name: "num_local_experts" not in configs[name])
    found: dict[str, Any] = {}
    for index, name in enumerate(names):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(configs[name]))
            config = _engine_config(folder, context)
            with set_current_vllm_config(config):
                if index == 0:
                    init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
                    initialize_model_parallel(1, 1)
                found[name] = _describe(config, cache_bytes)
    json.dump({"vllm": vllm.__version__, "models": found}, sys.stdout, indent=1, sort_keys=True)


def _engine_config(folder: str, context: int) -> VllmConfig:
    config = EngineArgs(
        model=folder,
        tokenizer=folder,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=context,
        max_num_batched_tokens=2048,
        block_size=16,
        enforce_eager=True,
    ).create_engine_config()
    # What the engine core resolves at a start; the sizes do not depend on it.
    config.cache_config.kv_cache_layout = "LBNHC"
    return config


def _describe(config: VllmConfig, cache_bytes: int) -> dict[str, Any]:
    with torch.device("meta"):
        model = initialize_model(config)
    specs = get_kv_cache_spec(config)
    layers = Counter((type(spec).__name__, spec.block_size, spec.page_size_bytes) for spec in specs.values())
    configs = get_kv_cache_configs(config, [specs], [cache_bytes])
    tokens, _ = get_kv_cache_capacity(config, generate_scheduler_kv_cache_config(configs))
    return {
        "layers": [
            {"kind": kind, "block": block, "page": page, "count": count}
            for (kind, block, page), count in sorted(layers.items())
        ],
        "tokens": tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3]))
