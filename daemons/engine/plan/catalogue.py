"""Models that are asked for often, by the sizes in their published ``config.json``."""

from typing import Any

from daemons.engine.plan.shape import Shape, shape_of


def _config(  # noqa: PLR0917 - a row of a table
    layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    } | more


CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-2-7B": _config(32, 4096, 11008, 32, 32, 32000),
    "Llama-3.1-8B": _config(32, 4096, 14336, 32, 8, 128256),
    "Llama-3-70B": _config(80, 8192, 28672, 64, 8, 128256),
    "Llama-3.1-405B": _config(126, 16384, 53248, 128, 8, 128256),
    "Mistral-7B-v0.3": _config(32, 4096, 14336, 32, 8, 32768),
    "Mistral-Small-24B": _config(40, 5120, 32768, 32, 8, 131072, head_dim=128),
    "Mixtral-8x7B": _config(32, 4096, 14336, 32, 8, 32000, num_local_experts=8),
    "Qwen2.5-72B": _config(80, 8192, 29568, 64, 8, 152064),
    "Qwen3-32B": _config(64, 5120, 25600, 64, 8, 151936, head_dim=128),
    "DeepSeek-V3": _config(
        61,
        7168,
        18432,
        128,
        128,
        129280,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        moe_intermediate_size=2048,
        n_routed_experts=256,
    ),
    "Gemma-3-27B": _config(
        62,
        5376,
        21504,
        32,
        16,
        262208,
        head_dim=128,
        sliding_window=1024,
        sliding_window_pattern=6,
        tie_word_embeddings=True,
    ),
    "gpt-oss-20b": _config(
        24,
        2880,
        2880,
        64,
        8,
        201088,
        head_dim=64,
        sliding_window=128,
        num_local_experts=32,
        layer_types=["sliding_attention", "full_attention"] * 12,
    ),
    "Jamba-v0.1": _config(
        32, 4096, 14336, 32, 8, 65536, attn_layer_period=8, attn_layer_offset=4, num_experts=16
    ),
    "Qwen3-Next-80B-A3B": _config(
        48,
        2048,
        5120,
        16,
        2,
        151936,
        head_dim=256,
        full_attention_interval=4,
        moe_intermediate_size=512,
        num_experts=512,
    ),
}


def shapes() -> dict[str, Shape]:
    """The catalogue's models by name."""
    return {name: shape_of(config) for name, config in CONFIGS.items()}
