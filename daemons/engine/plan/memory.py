"""The ledger of a GPU's memory: what weights, activations, graphs and the KV cache take.

Sources: vLLM's ``v1/worker/gpu_worker.py`` (what is left of ``total × utilisation`` becomes KV cache) and its
KV-cache specifications (bytes of a block). What is estimated rather than exact says so.
"""

from dataclasses import dataclass

from daemons.engine.plan.shape import Shape

GIB = 1 << 30

BLOCK_TOKENS = 16
"""Tokens in a block of vLLM's KV cache on GPUs."""
BLOCK_TOKENS_CPU = 128

_BATCHED_TOKENS = 2048
_NON_TORCH = int(0.13 * GIB)
_NON_TORCH_RANK = int(0.55 * GIB)
_GRAPHS = int(0.6 * GIB)
_ACTIVATION_FACTOR = 2.0

# Bits per weight of a linear layer, scales and zero points of the usual group size included.
_BITS = {"awq": 4.156, "gptq": 4.156, "int4": 4.156, "mxfp4": 4.25, "int8": 8.0, "fp8": 8.0}
_ALIASES = {"awq_marlin": "awq", "gptq_marlin": "gptq", "bitsandbytes": "int8", "compressed-tensors": "int8"}


@dataclass(frozen=True, slots=True)
class Ledger:
    """The memory of one GPU, in bytes.

    Attributes:
        total: what NVML reports.
        budget: what vLLM may use of it.
        weights, activation, graphs, other: what is gone before the KV cache gets its share.
        token: KV bytes of a token on this GPU, in layers that remember everything.
        window_tokens: bytes a request needs beside, in layers that remember a window.
        tokens: capacity of the KV cache.
    """

    total: int
    budget: int
    weights: int
    activation: int
    graphs: int
    other: int
    token: int
    sequence: int
    tokens: int

    @property
    def kv_cache(self) -> int:
        """What is left for the KV cache; negative when the model does not fit."""
        return self.budget - self.weights - self.activation - self.graphs - self.other

    def users(self, context: int) -> float:
        """Requests of `context` tokens that the cache holds at the same time."""
        if self.kv_cache <= 0:
            return 0.0
        return self.kv_cache / (context * self.token + self.sequence)


def kv_bytes_per_token(shape: Shape, tensor_parallel: int = 1, element_bytes: int | None = None) -> int:
    """KV bytes of one token on one GPU, in the layers that remember every token.

    GQA: ``2 · layers · max(1, kv_heads / tp) · head_dim · bytes``. MLA: ``layers · (kv_lora_rank +
    qk_rope_head_dim) · bytes``, on every GPU in full.
    """
    return _layer_bytes(shape, tensor_parallel, element_bytes) * shape.full_layers


def kv_bytes_per_sequence(shape: Shape, tensor_parallel: int = 1, element_bytes: int | None = None) -> int:
    """KV bytes that a long request needs once, in the layers that remember a window."""
    reach = shape.window + _BATCHED_TOKENS
    return _layer_bytes(shape, tensor_parallel, element_bytes) * shape.window_layers * reach


def _layer_bytes(shape: Shape, tensor_parallel: int, element_bytes: int | None) -> int:
    size = element_bytes or shape.dtype_bytes
    if shape.latent:
        return shape.latent * size
    return 2 * max(1, shape.kv_heads // tensor_parallel) * shape.head_dim * size


def parameters(shape: Shape) -> tuple[int, int]:
    """Parameters in linear layers, and in embeddings and the output head, which quantization leaves alone.

    Exact for the Llama family, Mistral, Mixtral and Qwen; for anything else read the weights themselves.
    """
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    feed_forward = 3 * shape.hidden * shape.intermediate * shape.experts
    router = shape.hidden * shape.experts if shape.experts > 1 else 0
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return shape.layers * (attention + feed_forward + router), embeddings


def estimated_weights(shape: Shape, quantization: str | None = None) -> int:
    """Bytes of the weights from the shape alone."""
    linear, embeddings = parameters(shape)
    method = quantization or shape.quantization
    bits = _BITS.get(_ALIASES.get(method or "", method or ""), 8.0 * shape.dtype_bytes)
    return int(linear * bits / 8) + embeddings * shape.dtype_bytes


def activation(shape: Shape, tensor_parallel: int, max_num_seqs: int) -> int:
    """Peak of a forward pass; an estimate: hidden states of the largest batch, and the logits in float32."""
    hidden_states = _BATCHED_TOKENS * (2 * shape.intermediate // tensor_parallel + 4 * shape.hidden) * 2
    logits = max_num_seqs * shape.vocabulary * 4 * 2
    return int(_ACTIVATION_FACTOR * (hidden_states + logits))


def ledger(
    shape: Shape,
    weights: int,
    gpu_bytes: int,
    *,
    tensor_parallel: int = 1,
    utilization: float = 0.90,
    max_num_seqs: int = 256,
    kv_element_bytes: int | None = None,
) -> Ledger:
    """The ledger of one of `tensor_parallel` GPUs that serve the model together.

    Args:
        shape: the model.
        weights: bytes of all its weights.
        gpu_bytes: memory of one GPU as NVML reports it.
        tensor_parallel: GPUs that share each layer.
        utilization: ``gpu_memory_utilization``.
        max_num_seqs: requests computed at the same time.
        kv_element_bytes: 1 for an fp8 KV cache; the model's own by default.
    """
    made = Ledger(
        total=gpu_bytes,
        budget=int(gpu_bytes * utilization),
        weights=weights // tensor_parallel,
        activation=activation(shape, tensor_parallel, max_num_seqs),
        graphs=_GRAPHS,
        other=_NON_TORCH if tensor_parallel == 1 else _NON_TORCH_RANK,
        token=kv_bytes_per_token(shape, tensor_parallel, kv_element_bytes),
        sequence=kv_bytes_per_sequence(shape, tensor_parallel, kv_element_bytes),
        tokens=0,
    )
    tokens = kv_tokens(shape, max(0, made.kv_cache), BLOCK_TOKENS, tensor_parallel, kv_element_bytes)
    return Ledger(
        **{name: getattr(made, name) for name in Ledger.__slots__ if name != "tokens"}, tokens=tokens
    )


def kv_tokens(
    shape: Shape, cache_bytes: int, block: int, tensor_parallel: int = 1, element_bytes: int | None = None
) -> int:
    """Tokens that `cache_bytes` hold, in whole blocks, when every layer remembers everything or a window."""
    layers = shape.full_layers + shape.window_layers
    page = _layer_bytes(shape, tensor_parallel, element_bytes) * layers * block
    return cache_bytes // page * block if page else 0
