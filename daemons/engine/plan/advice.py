"""From a ledger to a recommendation: how many GPUs, how many replicas, how many requests at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

from daemons.engine.plan.cache import cache_of
from daemons.engine.plan.memory import GIB, Ledger, Measured, ledger
from daemons.engine.plan.shape import Shape
from daemons.runtime.cli import counted

_ENOUGH = 0.5


@dataclass(frozen=True, slots=True)
class Advice:
    """What to configure.

    Attributes:
        tensor_parallel: GPUs of one engine; 0 when the model fits on none of the ways tried.
        replicas: engines beside each other.
        max_num_seqs: what to set.
        kv_bytes_per_token: over all GPUs of an engine.
        ledger: of one GPU, as advised.
        reason: one sentence.
    """

    tensor_parallel: int
    replicas: int
    max_num_seqs: int
    kv_bytes_per_token: int
    ledger: Ledger
    reason: str


def advise(
    shape: Shape,
    weights: int,
    gpu_bytes: int,
    *,
    gpus: int,
    context: int,
    utilization: float = 0.90,
    kv_element_bytes: int | None = None,
    measured: Mapping[int, Measured] | None = None,
) -> Advice:
    """The smallest engine that holds a request of `context` tokens, as often as the GPUs allow.

    Replicas beat tensor parallelism on cards without NVLink wherever one card holds the model: two of them
    answer nearly twice the requests, two that share each layer do not. Only where the weights, held once per
    replica, leave them less than half the room for requests do the GPUs rather share one engine.
    """
    ways = [2**power for power in range(gpus.bit_length()) if 2**power <= gpus]
    ledgers = {
        way: ledger(
            shape,
            weights,
            gpu_bytes,
            tensor_parallel=way,
            utilization=utilization,
            kv_element_bytes=kv_element_bytes,
            measured=(measured or {}).get(way),
        )
        for way in ways
    }
    token = cache_of(shape, 1, kv_element_bytes).token
    room = {way: entry.users(context) for way, entry in ledgers.items() if entry.users(context) >= 1}
    most = max((users * (gpus // way) for way, users in room.items()), default=0.0)
    for way, users in room.items():
        replicas = gpus // way
        if users * replicas >= _ENOUGH * most:
            reason = f"{users:.1f} requests of {context} tokens fit at once on each engine"
            if replicas > 1:
                reason += f"; {replicas} replicas serve more than one engine over {gpus} GPUs"
            return Advice(way, replicas, max(1, min(256, int(users * 2))), token, ledgers[way], reason)
    entry = ledgers[ways[-1]]
    short = (entry.cache.request(context) - entry.kv_cache) * ways[-1] / GIB
    cure = "a quantized or smaller model"
    if entry.kv_cache > 0:
        cure = f"a shorter context, or {cure}"
    return Advice(
        0,
        0,
        0,
        token,
        entry,
        f"does not fit on {counted(gpus, 'GPU')}: {short:.1f} GiB short; take {cure}",
    )
