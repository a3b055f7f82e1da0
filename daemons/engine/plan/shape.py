"""The shape of a model, read from its ``config.json``: what its KV cache and its weights depend on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

Config = Mapping[str, Any]

_NO_CACHE = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "moe", "mlp")


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder-only transformer.

    Attributes:
        full_layers: attention layers that remember every token.
        window_layers: attention layers that remember the last `window` tokens only.
        other_layers: layers without a KV cache (Mamba, linear attention): their state does not grow.
        kv_heads: key and value heads of one layer, over all GPUs.
        state: bytes that a layer of `other_layers` keeps of each request; 0 where that is not known.
        latent: width that MLA stores for a token in one layer instead of heads; 0 without MLA.
        experts: copies of the feed-forward block; 1 in a dense model.
    """

    architecture: str
    full_layers: int
    window_layers: int
    other_layers: int
    window: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    latent: int
    state: int
    vocabulary: int
    experts: int
    tied: bool
    longest: int
    dtype_bytes: int
    quantization: str | None

    @property
    def layers(self) -> int:
        """All layers."""
        return self.full_layers + self.window_layers + self.other_layers


def read_shape(folder: Path) -> Shape:
    """The shape of the model in `folder`.

    Raises:
        Fatal: there is no ``config.json``, or it describes no decoder-only transformer.
    """
    path = folder / "config.json"
    try:
        return shape_of(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise Fatal(describe_os_error(error, "read the model's shape from"), EXIT_CONFIG) from None
    except ValueError:
        raise Fatal(f"{path} is not JSON: the download is damaged", EXIT_CONFIG) from None
    except KeyError as error:
        raise Fatal(f"{path} lacks {error}: it describes no decoder-only transformer", EXIT_CONFIG) from None


def shape_of(config: Config) -> Shape:
    """The shape that a ``config.json`` describes.

    Raises:
        KeyError: a size that every transformer has is missing.
    """
    text = config.get("text_config") or config
    heads = int(text.get("num_attention_heads") or text["n_head"])
    hidden = int(text.get("hidden_size") or text["n_embd"])
    full, window_layers, other = _layer_kinds(text)
    dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or "bfloat16")
    element = 4 if dtype.endswith("float32") else 2
    quantization = config.get("quantization_config") or {}
    return Shape(
        architecture=str((config.get("architectures") or ["unknown"])[0]),
        full_layers=full,
        window_layers=window_layers,
        other_layers=other,
        window=int(text.get("sliding_window") or 0),
        hidden=hidden,
        intermediate=int(text.get("moe_intermediate_size") or text.get("intermediate_size") or 4 * hidden),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        latent=int(text.get("kv_lora_rank") or 0)
        and int(text["kv_lora_rank"]) + int(text["qk_rope_head_dim"]),
        state=_state_bytes(text, hidden, element),
        vocabulary=int(text["vocab_size"]),
        experts=int(
            text.get("num_local_experts") or text.get("num_experts") or text.get("n_routed_experts") or 1
        ),
        tied=bool(text.get("tie_word_embeddings", False)),
        longest=int(text.get("max_position_embeddings") or 0),
        dtype_bytes=element,
        quantization=quantization.get("quant_method"),
    )


def _state_bytes(text: Config, hidden: int, element: int) -> int:
    """State of one layer and request: what its convolution remembers, and a recurrent state in float32.

    Source: vLLM 0.32, ``model_executor/layers/mamba/mamba_utils.py``.
    """
    if text.get("linear_num_value_heads"):  # Qwen3-Next's gated delta net
        keys = int(text["linear_num_key_heads"]) * int(text["linear_key_head_dim"])
        values = int(text["linear_num_value_heads"]) * int(text["linear_value_head_dim"])
        convolution = (2 * keys + values) * (int(text["linear_conv_kernel_dim"]) - 1)
        return convolution * element + values * int(text["linear_key_head_dim"]) * 4
    if text.get("mamba_d_state") and not text.get("mamba_n_heads"):  # Mamba 1, as in Jamba
        inner = int(text.get("mamba_expand") or 2) * hidden
        convolution = inner * (int(text.get("mamba_d_conv") or 4) - 1)
        return convolution * element + inner * int(text["mamba_d_state"]) * 4
    return 0


def _layer_kinds(text: Config) -> tuple[int, int, int]:
    """How many layers remember everything, a window, and nothing token by token."""
    layers = int(text.get("num_hidden_layers") or text["n_layer"])
    kinds = text.get("layer_types") or text.get("layers_block_type")
    if kinds:
        without = sum(kind in _NO_CACHE for kind in kinds)
        windowed = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
        return layers - without - windowed, windowed, without
    attention = _attention_layers(text, layers)
    if attention < layers:
        return attention, 0, layers - attention
    full = _full_layers(text, layers)
    return full, layers - full, 0


def _attention_layers(text: Config, layers: int) -> int:
    """Layers with attention in a model that mixes them with others."""
    if text.get("hybrid_override_pattern"):  # Nemotron-H: M Mamba, * attention, - and E feed-forward
        return str(text["hybrid_override_pattern"]).count("*")
    if text.get("attn_layer_period"):  # Jamba
        period, offset = int(text["attn_layer_period"]), int(text.get("attn_layer_offset") or 0)
        return sum(index % period == offset for index in range(layers))
    if text.get("full_attention_interval"):  # Qwen3-Next
        return layers // int(text["full_attention_interval"])
    return layers


def _full_layers(text: Config, layers: int) -> int:
    """Attention layers that remember everything."""
    if not text.get("sliding_window") or not text.get("use_sliding_window", True):
        return layers
    if text.get("sliding_window_pattern"):  # Gemma 3: each n-th is full
        return layers // int(text["sliding_window_pattern"])
    return layers // 2 if text.get("model_type") == "gemma2" else 0
