"""The ledger of a GPU's memory: what weights, activations, graphs and the KV cache take.

Source: vLLM's ``v1/worker/gpu_worker.py`` (what is left of ``total × utilisation`` becomes KV cache). What is
estimated rather than exact says so.
"""

from dataclasses import dataclass

from daemons.engine.plan.cache import BATCHED_TOKENS, Cache, cache_of
from daemons.engine.plan.shape import Shape

GIB = 1 << 30

_NON_TORCH = int(0.13 * GIB)
_NON_TORCH_RANK = int(0.55 * GIB)
_GRAPHS = int(0.6 * GIB)
_ACTIVATION_FACTOR = 2.0

# Bits per weight of a linear layer, scales and zero points of the usual group size included.
_BITS = {"awq": 4.156, "gptq": 4.156, "int4": 4.156, "mxfp4": 4.25, "int8": 8.0, "fp8": 8.0}
_ALIASES = {"awq_marlin": "awq", "gptq_marlin": "gptq", "bitsandbytes": "int4", "compressed-tensors": "int8"}
QUANTIZATIONS = (*_BITS, *_ALIASES)
"""The methods whose bits a weight are known."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What vLLM itself said of an earlier start of the same model, release and GPU, in bytes of one GPU.

    Attributes:
        weights: what loading took.
        overhead: what else was gone before the KV cache got its share.
    """

    weights: int
    overhead: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """The memory of one GPU, in bytes.

    Attributes:
        total: what NVML reports.
        budget: what vLLM may use of it.
        weights, activation, graphs, other: what is gone before the KV cache gets its share.
        cache: how the KV cache is laid out.
    """

    total: int
    budget: int
    weights: int
    activation: int
    graphs: int
    other: int
    cache: Cache

    @property
    def kv_cache(self) -> int:
        """What is left for the KV cache; negative when the model does not fit."""
        return self.budget - self.weights - self.activation - self.graphs - self.other

    def users(self, context: int) -> float:
        """Requests of `context` tokens that the cache holds at the same time."""
        return self.cache.users(self.kv_cache, context)

    def tokens(self, context: int) -> int:
        """Capacity of the cache in tokens, for requests of `context` tokens."""
        return self.cache.tokens(self.kv_cache, context)


def parameters(shape: Shape) -> tuple[int, int]:
    """Parameters in linear layers, and in embeddings and the output head, which quantization leaves alone.

    Exact for the Llama family, Mistral, Mixtral and Qwen but for norms and biases; for anything else read the
    weights themselves.
    """
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    feed_forward = 3 * shape.hidden * shape.intermediate * shape.experts
    router = shape.hidden * shape.experts if shape.experts > 1 else 0
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return shape.layers * (attention + feed_forward + router), embeddings


def estimated_weights(shape: Shape, quantization: str | None = None, total: int | None = None) -> int:
    """Bytes of the weights from the shape alone.

    Args:
        shape: the model.
        quantization: method; the model's own by default.
        total: parameters, where they are known better than by `parameters`.
    """
    linear, embeddings = parameters(shape)
    if total is not None:
        linear = total - embeddings
    method = quantization or shape.quantization
    bits = _BITS.get(_ALIASES.get(method or "", method or ""), 8.0 * shape.dtype_bytes)
    return int(linear * bits / 8) + embeddings * shape.dtype_bytes


def activation(shape: Shape, tensor_parallel: int, max_num_seqs: int) -> int:
    """Peak of a forward pass; an estimate: hidden states of the largest batch, and the logits in float32."""
    hidden_states = BATCHED_TOKENS * (2 * shape.intermediate // tensor_parallel + 4 * shape.hidden) * 2
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
    measured: Measured | None = None,
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
        measured: what an earlier start showed, instead of the estimates.
    """
    return Ledger(
        total=gpu_bytes,
        budget=int(gpu_bytes * utilization),
        weights=measured.weights if measured else weights // tensor_parallel,
        activation=0 if measured else activation(shape, tensor_parallel, max_num_seqs),
        graphs=0 if measured else _GRAPHS,
        other=measured.overhead if measured else _NON_TORCH if tensor_parallel == 1 else _NON_TORCH_RANK,
        cache=cache_of(shape, tensor_parallel, kv_element_bytes),
    )
