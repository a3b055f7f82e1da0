"""Whether a model fits, before it is started, and what vLLM made of it afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from daemons.engine.command.render import CPU_KV_CACHE_BYTES
from daemons.engine.config import EngineSettings, flag_name
from daemons.engine.gpus import Gpu
from daemons.engine.plan import measured
from daemons.engine.plan.cache import BLOCK_TOKENS_CPU, cache_of
from daemons.engine.plan.measured import Measurement, Subject
from daemons.engine.plan.memory import GIB, ledger
from daemons.engine.plan.shape import Shape, read_shape
from daemons.engine.plan.weights import weights_in
from daemons.engine.vllm_log import Figures
from daemons.runtime.cli import counted
from daemons.runtime.errors import EXIT_CONFIG, Fatal

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Planned:
    """What an engine is expected to have, in bytes of one GPU.

    Attributes:
        subject: what is planned.
        budget: what vLLM may use; 0 on the CPU, where only the KV cache is planned.
        weights, kv_cache: what it is used for.
        tokens: capacity of the KV cache for requests of `context` tokens.
        corrected: whether this rests on an earlier start instead of on estimates.
    """

    subject: Subject
    budget: int
    weights: int
    kv_cache: int
    tokens: int
    context: int
    corrected: bool


def plan(settings: EngineSettings, folder: Path, gpus: Sequence[Gpu], release: str) -> Planned | None:
    """The plan for the model in `folder`; None for what is not here yet or cannot be planned: vLLM decides.

    Raises:
        Fatal: the weights alone exceed the GPUs' memory.
    """
    if not any(folder.glob("*.safetensors")):
        return None
    try:
        shape, weights = read_shape(folder), weights_in(folder)
    except Fatal as fault:
        log.warning("no plan", reason=str(fault))
        return None
    context = settings.max_model_len or shape.longest or 1
    ranks = settings.tensor_parallel_size
    gpu = gpus[0].name if gpus else "CPU"
    subject = Subject(settings.model, release, gpu, ranks, settings.max_num_seqs)
    if not gpus:
        size = settings.kv_cache_memory_bytes or CPU_KV_CACHE_BYTES
        tokens = cache_of(shape, 1, _element_bytes(settings), BLOCK_TOKENS_CPU).tokens(size, context)
        return Planned(subject, 0, weights, size, tokens, context, False)
    smallest = min(one.memory_bytes for one in gpus)
    if weights // ranks > smallest:
        raise Fatal(
            f"model: its weights are {weights / ranks / GIB:.1f} GiB for each of {counted(ranks, 'GPU')} of "
            f"{smallest / GIB:.1f} GiB: take a quantized or smaller model, or raise tensor_parallel_size",
            EXIT_CONFIG,
        )
    return _on_gpus(settings, shape, weights, smallest, subject, context)


def _on_gpus(  # noqa: PLR0917
    settings: EngineSettings, shape: Shape, weights: int, gpu_bytes: int, subject: Subject, context: int
) -> Planned:
    known = measured.find(measured.read(settings.state_dir), subject) if settings.state_dir else None
    made = ledger(
        shape,
        weights,
        gpu_bytes,
        tensor_parallel=subject.tensor_parallel,
        utilization=settings.gpu_memory_utilization,
        max_num_seqs=settings.max_num_seqs,
        kv_element_bytes=_element_bytes(settings),
        measured=known,
    )
    size = settings.kv_cache_memory_bytes or made.kv_cache
    users, tokens = made.cache.users(size, context), made.cache.tokens(size, context)
    if users < 1:
        log.warning(
            "the plan says that this will not fit; vLLM decides",
            kv_cache_gib=round(size / GIB, 1),
            request_tokens=context,
        )
    else:
        log.info("plan", kv_tokens=tokens, requests=round(users, 1), corrected=known is not None)
    return Planned(subject, made.budget, made.weights, size, tokens, context, known is not None)


def _element_bytes(settings: EngineSettings) -> int | None:
    """Bytes of a number in the KV cache where the settings choose another type than the model's."""
    chosen = [value for key, value in settings.extra_args.items() if flag_name(key) == "kv-cache-dtype"]
    return 1 if chosen and str(chosen[0]).startswith("fp8") else None


def compare(planned: Planned, figures: Figures, state_dir: Path | None) -> None:
    """Say how far the plan was from what vLLM says, and keep the latter for the next plan."""
    if figures.tokens is None:
        return
    log.info(
        "plan and vLLM",
        planned_tokens=planned.tokens,
        tokens=figures.tokens,
        difference_percent=round(100 * (figures.tokens / planned.tokens - 1), 2) if planned.tokens else None,
        planned_kv_cache_gib=round(planned.kv_cache / GIB, 2),
        kv_cache_gib=figures.kv_cache_gib,
        planned_weights_gib=round(planned.weights / GIB, 2),
        weights_gib=figures.weights_gib,
        corrected=planned.corrected,
    )
    if not planned.budget or figures.weights_gib is None or figures.kv_cache_gib is None or state_dir is None:
        return
    weights, kv_cache = int(figures.weights_gib * GIB), int(figures.kv_cache_gib * GIB)
    measured.keep(state_dir, Measurement(planned.subject, weights, planned.budget - weights - kv_cache))
