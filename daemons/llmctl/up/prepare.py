"""What has to be there before a local stack can start: an engine's program and a model."""

import enum
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from daemons.llmctl.up.host import Host
from daemons.llmctl.up.installer import find_installer
from daemons.llmctl.up.layout import Model
from daemons.llmctl.up.models import ensure_smollm2, model_cache
from daemons.llmctl.up.numa import ensure_libnuma
from daemons.llmctl.up.screen import Screen
from daemons.llmctl.up.vllm_env import CPU, CUDA, Environment, ensure_vllm
from daemons.runtime.errors import EXIT_CONFIG, Fatal

CHECKOUT = Path(__file__).resolve().parents[3]
LOCKS = CHECKOUT / "requirements"
SIMULATED_VLLM = "0.32.0"

_CPU_KV_CACHE_BYTES = 256 * 2**20
_SIMULATED_KV_CACHE_BYTES = 8 * 2**30
_CPU_CONTEXT = 2048
_CPU_SEQUENCES = 16


class EngineKind(enum.StrEnum):
    """``ENGINE=``."""

    VLLM = "vllm"
    SIMULATOR = "simulator"


@dataclass(frozen=True, slots=True)
class Engine:
    """What `prepare` found or made.

    Attributes:
        title: how the banner calls what answers.
        settings: keys of the engine's settings file that depend on it.
    """

    title: str
    model: Model
    settings: dict[str, Any]


def prepare(kind: EngineKind, model: str | None, screen: Screen) -> Engine:
    """Make ready what `kind` needs; long work is shown on `screen` and done once.

    Args:
        model: a folder or a hub name; None for the model that comes with the stack.

    Raises:
        Fatal: it cannot be had; one line with the cure.
    """
    if model is not None:
        model = _resolved(model)
    if kind is EngineKind.SIMULATOR:
        name = model or "simulated"
        command = [sys.executable, "-m", "daemons.simulator"]
        settings: dict[str, Any] = {"gpus": [], "vllm": command, "vllm_version": SIMULATED_VLLM}
        settings |= {"max_model_len": 8192, "kv_cache_memory_bytes": _SIMULATED_KV_CACHE_BYTES}
        return Engine("a simulation, not a language model", Model(name, served_name(name)), settings)
    gpus = count_gpus()
    environment = _vllm(gpus, screen)
    source, title = _model(model, environment, screen)
    where = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else "the CPU"
    found = Model(source, served_name(source))
    return Engine(f"{title} on vLLM {environment.version}, {where}", found, _settings(gpus, environment))


def _settings(gpus: int, environment: Environment) -> dict[str, Any]:
    if gpus:
        return {"gpus": [0], "vllm": [str(environment.vllm)]}
    return {
        "gpus": [],
        "vllm": [str(environment.vllm)],
        "max_model_len": _CPU_CONTEXT,
        "max_num_seqs": _CPU_SEQUENCES,
        "kv_cache_memory_bytes": _CPU_KV_CACHE_BYTES,
    }


def _vllm(gpus: int, screen: Screen) -> Environment:
    flavour = CUDA if gpus else CPU
    try:
        with screen.step(f"vLLM for {'NVIDIA GPUs' if gpus else 'the CPU'}") as step:
            environment = ensure_vllm(
                CHECKOUT / ".venv-vllm",
                LOCKS,
                flavour,
                host=Host.detect(),
                installer=find_installer(),
                progress=step,
            )
            if flavour is CPU:
                ensure_libnuma(environment.root)
            return environment
    except Fatal as error:
        raise Fatal(
            f"the real engine cannot be had here: {error}\n"
            "`make up ENGINE=simulator` starts the stack without it, on a simulated model",
            error.exit_code,
        ) from None


def _model(model: str | None, environment: Environment, screen: Screen) -> tuple[str, str]:
    """The source of the model and how to call it."""
    if model is None:
        with screen.step("model SmolLM2-135M-Instruct") as step:
            folder = ensure_smollm2(
                model_cache(),
                LOCKS,
                python=environment.python,
                installer=find_installer(),
                progress=step,
            )
        return str(folder), "SmolLM2-135M-Instruct"
    return model, Path(model).name


def _resolved(model: str) -> str:
    """A hub name as it is; a folder (anything that begins with ``.``, ``/`` or ``~``) as an absolute path.

    Raises:
        Fatal: no model is in the folder.
    """
    if not model.startswith((".", "/", "~")):
        return model
    path = Path(model).expanduser().resolve()
    if not (path / "config.json").is_file():
        raise Fatal(
            f"MODEL={model}: no model there: expected a folder with a config.json "
            "(leave MODEL out for the small model that comes with the stack)",
            EXIT_CONFIG,
        )
    return str(path)


def served_name(source: str) -> str:
    """The name under which clients know a model: the last part of its folder or hub name, in lower case."""
    return Path(source).name.lower()


def count_gpus() -> int:
    """NVIDIA GPUs that the driver shows; 0 without a driver."""
    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetCount())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return 0
