"""Models that are asked for often, by the sizes in their published ``config.json``."""

from typing import Any

from daemons.engine.plan.memory import estimated_weights
from daemons.engine.plan.shape import Shape, shape_of


def _config(  # noqa: PLR0917 - a row of a table
    kind: str,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    **more: Any,
) -> dict[str, Any]:
    return {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    } | more


_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "jamba": "JambaForCausalLM",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-2-7B": _config("llama", 32, 4096, 11008, 32, 32, 32000),
    "Llama-3.1-8B": _config("llama", 32, 4096, 14336, 32, 8, 128256),
    "Llama-3-70B": _config("llama", 80, 8192, 28672, 64, 8, 128256),
    "Llama-3.1-405B": _config("llama", 126, 16384, 53248, 128, 8, 128256),
    "Mistral-7B-v0.3": _config("mistral", 32, 4096, 14336, 32, 8, 32768, sliding_window=None),
    "Mistral-Small-24B": _config(
        "mistral", 40, 5120, 32768, 32, 8, 131072, head_dim=128, sliding_window=None
    ),
    "Mixtral-8x7B": _config("mixtral", 32, 4096, 14336, 32, 8, 32000, num_local_experts=8),
    "Qwen2.5-72B": _config("qwen2", 80, 8192, 29568, 64, 8, 152064),
    "Qwen3-32B": _config("qwen3", 64, 5120, 25600, 64, 8, 151936, head_dim=128),
    "DeepSeek-V3": _config(
        "deepseek_v3",
        61,
        7168,
        18432,
        128,
        128,
        129280,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        v_head_dim=128,
        qk_rope_head_dim=64,
        moe_intermediate_size=2048,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        first_k_dense_replace=3,
        quantization_config={"quant_method": "fp8"},
    ),
    "Gemma-3-27B": _config(
        "gemma3_text",
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
        "gpt_oss",
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
        quantization_config={"quant_method": "mxfp4"},
    ),
    "Jamba-v0.1": _config(
        "jamba",
        32,
        4096,
        14336,
        32,
        8,
        65536,
        attn_layer_period=8,
        attn_layer_offset=4,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=16,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=256,
    ),
    "Qwen3-Next-80B-A3B": _config(
        "qwen3_next",
        48,
        2048,
        5120,
        16,
        2,
        151936,
        head_dim=256,
        full_attention_interval=4,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        num_experts=512,
        num_experts_per_tok=10,
        linear_num_key_heads=16,
        linear_num_value_heads=32,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
    ),
}


PARAMETERS = {
    "DeepSeek-V3": 671_026_404_352,
    "Gemma-3-27B": 27_009_346_304,
    "gpt-oss-20b": 20_914_757_184,
    "Jamba-v0.1": 51_570_323_328,
    "Qwen3-Next-80B-A3B": 79_674_391_296,
}
"""What the formula for plain transformers does not know: parameters as vLLM 0.32 builds these."""

COMMON: tuple[tuple[str, str | None], ...] = (
    ("Llama-2-7B", None),
    ("Mistral-7B-v0.3", None),
    ("Llama-3.1-8B", None),
    ("Llama-3.1-8B", "awq"),
    ("gpt-oss-20b", None),
    ("Mistral-Small-24B", None),
    ("Mistral-Small-24B", "awq"),
    ("Gemma-3-27B", None),
    ("Qwen3-32B", None),
    ("Qwen3-32B", "awq"),
    ("Mixtral-8x7B", None),
    ("Mixtral-8x7B", "int8"),
    ("Mixtral-8x7B", "awq"),
    ("Jamba-v0.1", "int8"),
    ("Llama-3-70B", None),
    ("Llama-3-70B", "int8"),
    ("Llama-3-70B", "awq"),
    ("Qwen2.5-72B", "awq"),
    ("Qwen3-Next-80B-A3B", "awq"),
    ("Llama-3.1-405B", "awq"),
    ("DeepSeek-V3", None),
)
"""Models and quantizations that are asked for often, smallest first."""


def shapes() -> dict[str, Shape]:
    """The catalogue's models by name."""
    return {name: shape_of(config) for name, config in CONFIGS.items()}


def weights_of(name: str, quantization: str | None = None) -> int:
    """Bytes of the weights of a model of the catalogue.

    Raises:
        KeyError: there is no such model.
    """
    return estimated_weights(shape_of(CONFIGS[name]), quantization, PARAMETERS.get(name))
