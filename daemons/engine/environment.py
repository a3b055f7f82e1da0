"""The environment of vLLM."""

import re
from pathlib import Path

from daemons.engine.command.releases import Release
from daemons.engine.config import EngineSettings, is_folder
from daemons.engine.models.store import Store
from daemons.runtime.errors import Fatal, describe_os_error
from daemons.runtime.notify import child_environment

_ON_CPU = {
    # vLLM's own CPU kernels need no compiler; the first request with logprobs would otherwise wait for one.
    "TORCHDYNAMO_DISABLE": "1",
}


def engine_cache(settings: EngineSettings, cache_dir: Path, release: Release) -> Path:
    """The compile cache of this model under this vLLM, made if need be, readable by its owner only.

    What lies in it is executed, and is worth nothing to another model or version.

    Raises:
        Fatal: the folder cannot be made or written.
    """
    model = re.sub(r"[^A-Za-z0-9_.-]+", "--", settings.model.strip("/"))[-100:]
    folder = cache_dir / f"{model}-vllm-{release.name}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        probe = folder / ".writable"
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise Fatal(describe_os_error(error, "write the engine's cache")) from None
    return folder


def environment(settings: EngineSettings, cache: Path, gpu_uuids: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment for `settings` with its caches in `cache`, on the GPUs with these UUIDs."""
    made = child_environment()
    made |= {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
        # SIGABRT has a hung process write its own stacks where nobody may read them from outside.
        "PYTHONFAULTHANDLER": "1",
        # Written where the environment is writable: without it each start takes twice as long.
        "PYTHONDONTWRITEBYTECODE": "",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "VLLM_CONFIG_ROOT": str(cache / "config"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        "FLASHINFER_WORKSPACE_BASE": str(cache / "flashinfer"),
        "XDG_CACHE_HOME": str(cache / "xdg"),
        "HF_HOME": str(cache / "hf"),
    }
    if is_folder(settings.model) or Store(settings.models_dir).find(settings.model, settings.revision):
        made |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if settings.on_cpu:
        made |= _ON_CPU | {"CUDA_VISIBLE_DEVICES": ""}
    else:
        if settings.tensor_parallel_size > 1:
            # A collective that a rank never joins raises instead of waiting for ever (torch.distributed).
            made["TORCH_NCCL_BLOCKING_WAIT"] = "1"
        made |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpu_uuids)}
    return made | settings.environment
