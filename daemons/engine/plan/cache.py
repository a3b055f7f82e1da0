"""What vLLM's KV cache holds: bytes of a token, of a request, and how many of them fit.

Source: vLLM 0.32, ``v1/core/kv_cache_utils.py`` and ``v1/kv_cache_interface.py``. Layers of one kind are put
into groups of equal size, the last one padded, and all groups draw blocks from one pool; a request takes
whole blocks of each group.
"""

import math
from dataclasses import dataclass

from daemons.engine.plan.shape import Shape

BLOCK_TOKENS = 16
"""Tokens in a block of vLLM's KV cache on GPUs."""
BLOCK_TOKENS_CPU = 128
BATCHED_TOKENS = 2048
"""Tokens that one step computes (``max_num_batched_tokens``), by default."""

_BARELY_MORE = 1.5


@dataclass(frozen=True, slots=True)
class Cache:
    """The KV cache of a model on one GPU.

    Attributes:
        block: tokens of a block.
        page: bytes of a block in one layer.
        full_layers, window_layers, state_layers: layers by kind, padded to whole groups.
        group: layers of a group.
        window: tokens that a window layer remembers.
        state: bytes that a layer without a KV cache keeps of each request.
        token: bytes of a token in the layers that remember every token.
    """

    block: int
    page: int
    full_layers: int
    window_layers: int
    state_layers: int
    group: int
    window: int
    state: int
    token: int

    def request(self, context: int) -> int:
        """Bytes that a request of `context` tokens takes at most."""
        full = math.ceil(context / self.block)
        windowed = math.ceil(min(self.window - 1 + BATCHED_TOKENS, context) / self.block) + 1
        blocks = full * self.full_layers + windowed * self.window_layers
        return blocks * self.page + self.state_layers * self.state

    def users(self, size: int, context: int) -> float:
        """Requests of `context` tokens that `size` bytes hold at the same time."""
        pool = self.group * self.page
        if size <= 0 or not pool:
            return 0.0
        return size // pool * pool / self.request(context)

    def tokens(self, size: int, context: int) -> int:
        """Capacity as vLLM's log says it: the tokens of as many requests of `context` tokens as fit."""
        return int(self.users(size, context) * context)


def cache_of(
    shape: Shape, tensor_parallel: int = 1, element_bytes: int | None = None, block: int = BLOCK_TOKENS
) -> Cache:
    """The cache of `shape` on one of `tensor_parallel` GPUs.

    Args:
        shape: the model.
        tensor_parallel: GPUs that share each layer.
        element_bytes: bytes of a number in the cache, 1 for fp8; the model's own by default.
        block: tokens of a block.
    """
    layer = _layer_bytes(shape, tensor_parallel, element_bytes)
    counts = [count for count in (shape.full_layers, shape.window_layers, shape.other_layers) if count]
    group = min(counts)
    if max(counts) < group * _BARELY_MORE:
        group = max(counts)

    def padded(layers: int) -> int:
        return math.ceil(layers / group) * group

    return Cache(
        block=block,
        page=layer * block,
        full_layers=padded(shape.full_layers),
        window_layers=padded(shape.window_layers),
        state_layers=padded(shape.other_layers),
        group=group,
        window=shape.window,
        state=shape.state // tensor_parallel,
        token=layer * shape.full_layers,
    )


def _layer_bytes(shape: Shape, tensor_parallel: int, element_bytes: int | None) -> int:
    """GQA: ``2 · max(1, kv_heads / tp) · head_dim · bytes``; MLA: its latent, on every GPU in full."""
    size = element_bytes or shape.dtype_bytes
    if shape.latent:
        return shape.latent * size
    return 2 * max(1, shape.kv_heads // tensor_parallel) * shape.head_dim * size
