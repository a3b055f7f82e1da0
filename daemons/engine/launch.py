"""Everything that is decided before vLLM is started."""

import contextlib
import os
from collections.abc import Callable, Mapping
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
from daemons.engine.fit import Planned, plan
from daemons.engine.gpus import Gpu, Inventory, resolve, shared_too_far
from daemons.engine.models.store import Store
from daemons.engine.peers.bus import read_bus
from daemons.engine.peers.trial import Outcome, try_all_reduce
from daemons.engine.peers.verdict import ALONE, Peers, judge
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
        peers: how those GPUs reach each other.
        planned: what it is expected to have; None where there is no plan.
    """

    settings: EngineSettings
    release: Release
    command: tuple[str, ...]
    environment: dict[str, str]
    socket: Path
    gpus: tuple[str, ...] = ()
    cpus: frozenset[int] = frozenset()
    peers: Peers = ALONE
    planned: Planned | None = None


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


def prepare(
    settings: EngineSettings,
    inventory: Inventory,
    others: Mapping[str, EngineSettings],
    try_peers: Callable[[str, int, Mapping[str, str]], Outcome] = try_all_reduce,
) -> Launch:
    """Check everything that can be checked before a start, and make the folders.

    Args:
        inventory: the GPUs.
        others: the other engines of this machine by name.
        try_peers: tries an all-reduce: vLLM's program, ranks, environment.

    Raises:
        Fatal: the start cannot succeed.
    """
    release = release_of(settings)
    gpus = claim(settings, inventory, others)
    uuids = tuple(gpu.uuid for gpu in gpus)
    command_of(settings, release)
    planned = plan(settings, Path(model_of(settings)), gpus, release.name)
    make_runtime_dir(settings)
    cache = engine_cache(settings, _resolved(settings.cache_dir), release)
    made = environment(settings, cache, uuids)
    peers = ALONE
    if settings.tensor_parallel_size > 1:
        peers = judge(
            inventory.links(uuids),
            read_bus([gpu.pci for gpu in gpus]),
            lambda extra: try_peers(settings.vllm[0], settings.tensor_parallel_size, {**made, **extra}),
        )
        log.info("GPU peers", direct=peers.direct, reason=peers.reason, **peers.facts)
    return Launch(
        settings=settings,
        release=release,
        command=tuple(command_of(settings, release, peers.direct)),
        environment={**peers.environment, **made},
        socket=socket_of(settings),
        gpus=uuids,
        cpus=frozenset().union(*(gpu.cpus for gpu in gpus)),
        peers=peers,
        planned=planned,
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
