"""Everything that is decided before vLLM is started."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from daemons.engine.command.releases import (
    OLDEST_DEPLOYED,
    Release,
    ask,
    flags_from_help,
    installed_version,
    parse_version,
    release,
    table,
)
from daemons.engine.command.render import render
from daemons.engine.config import EngineSettings, is_folder
from daemons.engine.environment import engine_cache, environment
from daemons.engine.gpus import Gpu, Inventory, resolve, shared_too_far
from daemons.engine.models.store import Store
from daemons.engine.plan.memory import GIB, ledger
from daemons.engine.plan.shape import read_shape
from daemons.engine.plan.weights import weights_in
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error
from daemons.runtime.sockets import unix_socket_alive

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the engine, again and again.

    Attributes:
        command: program and arguments.
        environment: the whole environment.
        socket: where vLLM listens.
        gpus: UUIDs of its GPUs.
        cpus: processors near those GPUs; empty means any.
    """

    settings: EngineSettings
    release: Release
    command: tuple[str, ...]
    environment: dict[str, str]
    socket: Path
    gpus: tuple[str, ...] = ()
    cpus: frozenset[int] = frozenset()


def release_of(settings: EngineSettings) -> Release:
    """The vLLM release that the settings name, or that is installed.

    Raises:
        Fatal: it cannot be found out.
    """
    if settings.vllm_version is not None:
        try:
            return release(parse_version(settings.vllm_version))
        except ValueError as error:
            raise Fatal(f"vllm_version: {error}", EXIT_CONFIG) from None
    version = installed_version(settings.vllm)
    if version in table():
        return release(version)
    flags = flags_from_help(ask(settings.vllm, "serve", "--help=all"))
    return Release(version, flags) if flags else release(version)


def command_of(settings: EngineSettings, release: Release, direct_access: bool = True) -> list[str]:
    """The command for `release`.

    Raises:
        Fatal: a flag is unknown to it, or the model folder is absent.
    """
    if release.version < OLDEST_DEPLOYED:
        oldest = ".".join(map(str, OLDEST_DEPLOYED))
        raise Fatal(
            f"vLLM {release.name} has known holes and cannot drain: install {oldest} or newer", EXIT_CONFIG
        )
    return render(settings, release, model_of(settings), socket_of(settings), direct_access)


def prepare(settings: EngineSettings, inventory: Inventory, others: Mapping[str, EngineSettings]) -> Launch:
    """Check everything that can be checked before a start, and make the folders.

    Args:
        inventory: the GPUs.
        others: the other engines of this machine by name.

    Raises:
        Fatal: the start cannot succeed.
    """
    release = release_of(settings)
    gpus = claim(settings, inventory, others)
    uuids = tuple(gpu.uuid for gpu in gpus)
    direct = settings.tensor_parallel_size == 1 or inventory.direct_access(uuids)
    command = command_of(settings, release, direct)
    check_fit(settings, gpus)
    make_runtime_dir(settings)
    cache = engine_cache(settings, _resolved(settings.cache_dir), release)
    return Launch(
        settings=settings,
        release=release,
        command=tuple(command),
        environment=environment(settings, cache, uuids, direct),
        socket=socket_of(settings),
        gpus=uuids,
        cpus=frozenset().union(*(gpu.cpus for gpu in gpus)),
    )


def claim(
    settings: EngineSettings, inventory: Inventory, others: Mapping[str, EngineSettings]
) -> tuple[Gpu, ...]:
    """The GPUs of this engine.

    Raises:
        Fatal: one does not exist, or is claimed beyond its memory together with another engine.
    """
    if settings.on_cpu:
        return ()
    there = inventory.gpus()
    mine = resolve(settings.gpus, there)
    claims = []
    for name, other in others.items():
        with contextlib.suppress(Fatal):
            claims.append((name, resolve(other.gpus, there), other.gpu_memory_utilization))
    fault = shared_too_far(mine, settings.gpu_memory_utilization, claims)
    if fault:
        raise Fatal(fault, EXIT_CONFIG)
    return mine


def check_fit(settings: EngineSettings, gpus: Sequence[Gpu]) -> None:
    """Refuse a model whose weights alone exceed the GPUs; warn of one that the plan says will not fit.

    Models that are not on this machine yet, or are no safetensors, are left to vLLM.

    Raises:
        Fatal: the weights do not fit.
    """
    folder = Path(model_of(settings))
    if not gpus or not any(folder.glob("*.safetensors")):
        return
    shape, weights = read_shape(folder), weights_in(folder)
    smallest, ranks = min(gpu.memory_bytes for gpu in gpus), settings.tensor_parallel_size
    if weights // ranks > smallest:
        raise Fatal(
            f"model: its weights are {weights / ranks / GIB:.1f} GiB for each of {ranks} GPU(s) of "
            f"{smallest / GIB:.1f} GiB: take a quantized or smaller model, or raise tensor_parallel_size",
            EXIT_CONFIG,
        )
    planned = ledger(
        shape,
        weights,
        smallest,
        tensor_parallel=ranks,
        utilization=settings.gpu_memory_utilization,
        max_num_seqs=settings.max_num_seqs,
    )
    context = settings.max_model_len or shape.longest
    if planned.users(max(1, context)) < 1:
        log.warning(
            "the plan says that this will not fit; vLLM decides",
            kv_cache_gib=round(planned.kv_cache / GIB, 1),
            request_tokens=context,
        )
    else:
        log.info("plan", kv_tokens=planned.tokens, requests=round(planned.users(max(1, context)), 1))


def model_of(settings: EngineSettings) -> str:
    """The model as vLLM shall be told.

    Raises:
        Fatal: it is a folder that is absent or holds no model.
    """
    if not is_folder(settings.model):
        downloaded = Store(settings.models_dir).find(settings.model, settings.revision)
        return settings.model if downloaded is None else os.fspath(downloaded)
    folder = Path(settings.model)
    if not folder.is_dir():
        raise Fatal(
            f"model: the folder {folder} does not exist: correct the key model, or download it", EXIT_CONFIG
        )
    if not (folder / "config.json").is_file() and not (folder / "params.json").is_file():
        raise Fatal(
            f"model: {folder} holds no config.json: it is no model, or its download is incomplete",
            EXIT_CONFIG,
        )
    return os.fspath(folder)


def socket_of(settings: EngineSettings) -> Path:
    """vLLM's socket."""
    return _resolved(settings.runtime_dir) / "api.sock"


def control_socket_of(settings: EngineSettings) -> Path:
    """The supervisor's own socket."""
    return _resolved(settings.runtime_dir) / "control.sock"


def make_runtime_dir(settings: EngineSettings) -> None:
    """Make the folder of the sockets where the service manager has not.

    Raises:
        Fatal: it cannot be made.
    """
    try:
        _resolved(settings.runtime_dir).mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise Fatal(describe_os_error(error, "make the engine's runtime folder"), EXIT_CONFIG) from None


def free_socket(socket: Path) -> None:
    """Remove what a dead engine left at `socket`: vLLM does not, and could not listen there.

    Raises:
        Fatal: somebody listens there.
    """
    if unix_socket_alive(socket):
        raise Fatal(f"{socket} is already in use: another engine of this name runs; stop it first")
    try:
        socket.unlink(missing_ok=True)
    except OSError as error:
        raise Fatal(describe_os_error(error, "replace the socket")) from None


def _resolved(path: Path | None) -> Path:
    if path is None:
        raise RuntimeError("config.load fills in every path")
    return path
