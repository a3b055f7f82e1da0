"""The settings of one engine: ``/etc/llm/engines/NAME.yaml``."""

import contextlib
import os
import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from daemons.runtime import settings
from daemons.runtime.cli import CONFIG_DIR
from daemons.runtime.settings import ConfigError, Fault, Settings
from daemons.runtime.sockets import Address

ExtraValue = bool | int | float | str | list[str | int | float] | dict[str, object] | None

_NAME = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?")
_RENDERED = {
    "model": "model",
    "served-model-name": "served_names",
    "tensor-parallel-size": "tensor_parallel_size",
    "quantization": "quantization",
    "gpu-memory-utilization": "gpu_memory_utilization",
    "max-model-len": "max_model_len",
    "max-num-seqs": "max_num_seqs",
    "kv-offloading-size": "kv_offload_gib",
    "kv-cache-memory-bytes": "kv_cache_memory_bytes",
    "enforce-eager": "enforce_eager",
    "revision": "revision",
    "shutdown-timeout": "stop.drain_seconds",
    "swap-space": "kv_offload_gib",
}
_OURS = {
    "api-key": "the gateway authenticates; the engine listens on a unix socket that only it reaches",
    "config": "put the options into extra_args one by one",
    "host": "engines listen on a unix socket",
    "port": "engines listen on a unix socket",
    "uds": "the socket lies in runtime_dir",
}


class Startup(Settings):
    """How long a start may take."""

    stall_seconds: float = Field(default=600, gt=0)
    """Seconds without any sign of progress in vLLM's log after which the start is given up."""
    cap_seconds: float = Field(default=3600, gt=0)
    """Seconds after which a start is given up although it progresses."""


class Restart(Settings):
    """What happens when a running engine fails."""

    budget: int = Field(default=5, ge=0)
    """Restarts within `window_seconds`; one more and the daemon ends, for the service manager to decide."""
    window_seconds: float = Field(default=3600, gt=0)
    """The window of `budget`."""
    first_delay_seconds: float = Field(default=0.5, ge=0)
    """Delay from a failure to the first restart in the window; doubles with each further one."""
    longest_delay_seconds: float = Field(default=60, ge=0)
    """The delay stops to grow here."""


class Stop(Settings):
    """How an engine ends."""

    drain_seconds: int = Field(default=60, ge=0)
    """Seconds that requests in flight get to finish. TimeoutStopSec is extended to fit."""
    announce_seconds: float = Field(default=3, ge=0)
    """Seconds to wait at most until every gateway has seen that the engine drains."""
    kill_seconds: float = Field(default=10, gt=0)
    """Seconds after the drain until what still lives is killed."""


class Watchdog(Settings):
    """When a running engine counts as hung."""

    interval_seconds: float = Field(default=6, gt=0)
    """Seconds between two looks at the engine's progress."""
    misses: int = Field(default=3, ge=2)
    """Looks in a row that see work in flight and nothing moving, after which the engine is restarted."""
    idle_probe_seconds: float = Field(default=60, gt=0)
    """Seconds of idleness after which one token is asked for, to see that it still comes."""


class EngineSettings(Settings):
    """One engine: a model on some GPUs."""

    model: str = Field(min_length=1)
    """Model: a folder (absolute, or relative to this file when it begins with a dot), or a hub name."""
    served_names: list[str] = Field(min_length=1)
    """Names that clients use for the model; the first is the one in vLLM's metrics."""
    gpus: list[int | str]
    """GPUs by index, PCI address or UUID; an empty list runs on the CPU."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share each layer; at most as many as `gpus` names."""
    quantization: str | None = None
    """Quantization method; null lets vLLM read it from the model, which picks the fast kernel."""
    gpu_memory_utilization: float = Field(default=0.90, gt=0, le=1)
    """Share of each GPU's memory that vLLM may use, CUDA graphs included."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Longest prompt plus answer, in tokens; null takes the model's own."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Requests that are computed at the same time."""
    kv_offload_gib: float = Field(default=0, ge=0)
    """Host memory as a second tier of the KV cache, in GiB, total over the tensor-parallel ranks."""
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1)
    """KV cache in bytes per GPU, instead of what `gpu_memory_utilization` leaves; on CPU 1 GiB by default."""
    enforce_eager: bool | None = None
    """Whether to skip compilation and CUDA graphs; null means on CPU only."""
    metrics: Address
    """Where this engine's metrics are offered, vLLM's own among them."""
    revision: str | None = None
    """Revision of a hub model: a commit, tag or branch."""
    extra_args: dict[str, ExtraValue] = Field(default_factory=dict)
    """Further flags of ``vllm serve`` by name: true gives ``--flag``, false ``--no-flag``, null nothing."""
    vllm: list[str] = Field(default=["/opt/llm/vllm/current/bin/vllm"], min_length=1)
    """The command that stands for ``vllm``; relative paths are relative to this file."""
    vllm_version: str | None = None
    """Version that `vllm` speaks; null reads it from its installation."""
    gpu_exporter: str = "http://127.0.0.1:9101/metrics"
    """Metrics of this host's GPU exporter: trouble of the engine's GPUs makes the engine sick."""
    models_dir: Path = Path("/var/lib/llm/models")
    """Where hub models lie once downloaded."""
    runtime_dir: Path | None = None
    """Folder of ``api.sock`` and ``control.sock``; null means ``$RUNTIME_DIRECTORY``, else
    ``/run/llm/engines/NAME``."""
    cache_dir: Path | None = None
    """Folder of the compile caches; null means ``$CACHE_DIRECTORY``, else ``/var/cache/llm/engines/NAME``."""
    state_dir: Path | None = None
    """Folder of the post-mortems; null means ``$STATE_DIRECTORY``, else ``/var/lib/llm/engines/NAME``."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Additions to the environment of vLLM; they win over what the daemon sets."""
    startup: Startup = Startup()
    """When a start is given up."""
    restart: Restart = Restart()
    """What happens when the running engine fails."""
    stop: Stop = Stop()
    """How the engine ends."""
    watchdog: Watchdog = Watchdog()
    """When the running engine counts as hung."""

    @field_validator("extra_args")
    @classmethod
    def _not_ours(cls, extra: dict[str, ExtraValue]) -> dict[str, ExtraValue]:
        for name in extra:
            flag = flag_name(name)
            if flag in _RENDERED:
                raise ValueError(f"{name}: set the key {_RENDERED[flag]} instead")
            if flag in _OURS:
                raise ValueError(f"{name} is not yours to set: {_OURS[flag]}")
        return extra

    @model_validator(mode="after")
    def _consistent(self) -> "EngineSettings":
        if self.gpus and self.tensor_parallel_size > len(self.gpus):
            raise ValueError(
                f"tensor_parallel_size is {self.tensor_parallel_size}, but gpus names {len(self.gpus)}"
            )
        if not self.gpus and self.tensor_parallel_size > 1:
            raise ValueError("tensor_parallel_size must be 1 on CPU (gpus is empty)")
        if len(set(map(str, self.gpus))) != len(self.gpus):
            raise ValueError("gpus names one GPU twice")
        return self

    @property
    def on_cpu(self) -> bool:
        """Whether the engine runs without GPUs."""
        return not self.gpus


def flag_name(key: str) -> str:
    """The flag that a key of `extra_args` names: ``max_num_seqs`` → ``max-num-seqs``."""
    return key.lstrip("-").replace("_", "-")


def load(name: str, path: Path | None = None) -> EngineSettings:
    """The settings of the engine `name`, every relative path in them made absolute.

    Raises:
        ConfigError: with every fault of the file.
    """
    path = path or CONFIG_DIR / "engines" / f"{name}.yaml"
    if not _NAME.fullmatch(name):
        raise ConfigError(
            [Fault(path, "", f"{name!r} is no engine name: lower-case letters, digits, dots and dashes")]
        )
    loaded = settings.load(path, EngineSettings)
    base = path.absolute().parent
    return loaded.model_copy(
        update={
            "model": os.fspath(_absolute(loaded.model, base)) if is_folder(loaded.model) else loaded.model,
            "vllm": [_absolute_command(loaded.vllm[0], base), *loaded.vllm[1:]],
            "models_dir": _absolute(loaded.models_dir, base),
            "runtime_dir": _absolute(
                loaded.runtime_dir or _given("RUNTIME_DIRECTORY") or f"/run/llm/engines/{name}", base
            ),
            "state_dir": _absolute(
                loaded.state_dir or _given("STATE_DIRECTORY") or f"/var/lib/llm/engines/{name}", base
            ),
            "cache_dir": _absolute(
                loaded.cache_dir or _given("CACHE_DIRECTORY") or f"/var/cache/llm/engines/{name}", base
            ),
        }
    )


def neighbours(name: str, path: Path | None = None) -> dict[str, EngineSettings]:
    """The other engines configured beside `name`; a file that cannot be read is its own engine's trouble."""
    path = path or CONFIG_DIR / "engines" / f"{name}.yaml"
    found: dict[str, EngineSettings] = {}
    for other in sorted(path.absolute().parent.glob("*.yaml")):
        if other != path.absolute():
            with contextlib.suppress(ConfigError):
                found[other.stem] = settings.load(other, EngineSettings)
    return found


def is_folder(model: str) -> bool:
    """Whether `model` is meant as a folder rather than a hub name."""
    return model.startswith(("/", ".", "~"))


def _given(variable: str) -> str | None:
    """The first folder of a ``*_DIRECTORY`` variable (systemd.exec(5))."""
    return os.environ.get(variable, "").split(":")[0] or None


def _absolute(path: Path | str, base: Path) -> Path:
    return Path(os.path.normpath(base / Path(path).expanduser()))


def _absolute_command(program: str, base: Path) -> str:
    return os.fspath(_absolute(program, base)) if "/" in program else program
