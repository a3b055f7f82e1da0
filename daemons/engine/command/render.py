"""Renders settings into a ``vllm serve`` command for one release of vLLM."""

import json
from collections.abc import Iterator
from pathlib import Path

from daemons.engine.command.releases import Release
from daemons.engine.config import EngineSettings, ExtraValue, flag_name, is_folder

CPU_KV_CACHE_BYTES = 1 << 30
"""KV cache on the CPU when the settings name none: vLLM would otherwise take a share of the host's memory."""


def render(
    settings: EngineSettings, release: Release, model: str, socket: Path, direct_access: bool = True
) -> list[str]:
    """The whole command, program first.

    Args:
        settings: the engine's settings.
        release: the vLLM release that will read the command.
        model: folder or hub name of the model.
        socket: path of the unix socket that vLLM shall listen on.
        direct_access: whether the GPUs can reach each other's memory.

    Raises:
        Fatal: the release does not know a flag of `extra_args`, or lacks what the settings ask for.
    """
    wanted = list(_wanted(settings, release, model, socket))
    if settings.tensor_parallel_size > 1 and not direct_access:
        # vLLM trusts the driver about peer access and would hang in its first all-reduce.
        wanted.append(("disable-custom-all-reduce", True))
    extra = [(flag_name(key), value) for key, value in settings.extra_args.items()]
    release.check([flag for flag, _ in wanted], [flag for flag, value in extra if value is not None])
    command = [*settings.vllm, "serve", model]
    for flag, value in wanted + extra:
        command += _option(flag, value)
    return command


def _wanted(
    settings: EngineSettings, release: Release, model: str, socket: Path
) -> Iterator[tuple[str, ExtraValue]]:
    yield "uds", str(socket)
    yield "served-model-name", list(settings.served_names)
    if settings.max_model_len is not None:
        yield "max-model-len", settings.max_model_len
    yield "max-num-seqs", settings.max_num_seqs
    yield from _memory(settings)
    if settings.tensor_parallel_size > 1:
        yield "tensor-parallel-size", settings.tensor_parallel_size
    if settings.quantization is not None:
        yield "quantization", settings.quantization
    if settings.revision is not None and not is_folder(model):
        yield "revision", settings.revision
    if settings.on_cpu if settings.enforce_eager is None else settings.enforce_eager:
        yield "enforce-eager", True
    yield from _housekeeping(settings, release)


def _memory(settings: EngineSettings) -> Iterator[tuple[str, ExtraValue]]:
    kv_cache = settings.kv_cache_memory_bytes or (CPU_KV_CACHE_BYTES if settings.on_cpu else None)
    if kv_cache is not None:
        yield "kv-cache-memory-bytes", kv_cache
    if not settings.on_cpu:
        yield "gpu-memory-utilization", settings.gpu_memory_utilization
    if settings.kv_offload_gib:
        yield "kv-offloading-size", settings.kv_offload_gib


def _housekeeping(settings: EngineSettings, release: Release) -> Iterator[tuple[str, ExtraValue]]:
    """Flags that make operation better where the release has them, and that nothing depends on."""
    set_by_operator = {flag_name(key) for key in settings.extra_args}
    for flag, value in (
        ("shutdown-timeout", settings.stop.drain_seconds),
        ("disable-uvicorn-access-log", True),
        ("enable-prompt-tokens-details", True),
    ):
        if release.knows(flag) and flag not in set_by_operator:
            yield flag, value


def _option(flag: str, value: ExtraValue) -> list[str]:
    match value:
        case None:
            return []
        case True:
            return [f"--{flag}"]
        case False:
            return [f"--no-{flag}"]
        case list():
            return [f"--{flag}", *map(str, value)]
        case dict():
            return [f"--{flag}", json.dumps(value, separators=(",", ":"))]
        case _:
            return [f"--{flag}", str(value)]
