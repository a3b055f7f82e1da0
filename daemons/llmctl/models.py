"""``llmctl download`` and ``llmctl models``: models on this host."""

import argparse
import sys
from pathlib import Path
from typing import Any

from huggingface_hub.utils.tqdm import disable_progress_bars
from rich.console import Console
from rich.table import Table

from daemons.engine.config import EngineSettings, is_folder
from daemons.engine.models.hub import Hub
from daemons.engine.models.store import Store
from daemons.runtime import settings
from daemons.runtime.cli import CONFIG_DIR
from daemons.runtime.credentials import Credentials
from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.notify import SystemdNotifier

_GIB = 1 << 30
MODELS_DIR = Path("/var/lib/llm/models")


def add_parsers(subparsers: Any) -> None:
    """Add ``download`` and ``models`` to `llmctl`'s verbs."""
    download = subparsers.add_parser("download", help="fetch models; without a name every configured one")
    download.add_argument("models", nargs="*", metavar="MODEL", help="ORGANISATION/NAME, or NAME@REVISION")
    download.add_argument(
        "--engine", action="append", default=[], metavar="NAME", help="the model of this engine"
    )
    _common(download)
    download.set_defaults(run=run_download)
    models = subparsers.add_parser("models", help="list, verify and remove downloaded models")
    verbs = models.add_subparsers(metavar="ACTION", required=True)
    for name, run, text in (
        ("list", run_list, "what is there"),
        ("verify", run_verify, "read every byte and compare with the manifest; exit status 1 with a fault"),
        ("remove", run_remove, "delete a model"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("models", nargs="+" if name == "remove" else "*", metavar="MODEL")
        _common(verb)
        verb.set_defaults(run=run)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models-dir", type=Path, default=None, metavar="FOLDER")
    parser.add_argument("--config-dir", type=Path, default=CONFIG_DIR, metavar="FOLDER")


def run_download(args: argparse.Namespace) -> int:
    """Fetch what is asked for; every model is tried, the first failure decides the exit status.

    Raises:
        Fatal: with a line for each model that could not be had.
    """
    wanted = _wanted(args)
    hub = Hub(token=Credentials(args.config_dir).get("hf-token"))
    notifier, interactive = SystemdNotifier(), sys.stderr.isatty()
    if not interactive:
        disable_progress_bars()
    failures: list[Fatal] = []
    for repository, revision, folder in wanted:

        def report(name: str, done: int, total: int, repository: str = repository) -> None:
            share = f"{done / _GIB:.1f} of {total / _GIB:.1f} GiB"
            notifier.status(f"downloading {repository}: {share} {name}")
            if not interactive:
                print(f"{repository}: {share} {name}".rstrip(), flush=True)

        try:
            manifest = hub.download(repository, revision, Store(folder), report)
            print(f"{repository} is complete at {manifest.revision} in {Store(folder).path(repository)}")
        except Fatal as failure:
            failures.append(failure)
    if failures:
        raise Fatal("\n".join(map(str, failures)), failures[0].exit_code)
    return 0


def _wanted(args: argparse.Namespace) -> list[tuple[str, str | None, Path]]:
    """Repository, revision and folder of each model to fetch, none twice."""
    named = [
        (name.partition("@")[0], name.partition("@")[2] or None, args.models_dir or MODELS_DIR)
        for name in args.models
    ]
    if not args.models or args.engine:
        named += _configured(args)
    return list(dict.fromkeys(named))


def _configured(args: argparse.Namespace) -> list[tuple[str, str | None, Path]]:
    folder = args.config_dir / "engines"
    files = [folder / f"{name}.yaml" for name in args.engine] or sorted(folder.glob("*.yaml"))
    if not files:
        raise Fatal(f"no engine is configured in {folder}: name a model", EXIT_CONFIG)
    engines = [settings.load(path, EngineSettings) for path in files]
    return [
        (engine.model, engine.revision, args.models_dir or engine.models_dir)
        for engine in engines
        if not is_folder(engine.model)
    ]


def run_list(args: argparse.Namespace) -> int:
    """Print the models."""
    table = Table("model", "revision", "files", "GiB")
    for manifest in _store(args).models():
        if not args.models or manifest.repository in args.models:
            size = sum(entry.size for entry in manifest.files.values()) / _GIB
            table.add_row(
                manifest.repository, manifest.revision[:12], str(len(manifest.files)), f"{size:.1f}"
            )
    Console().print(table)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Check models against their manifests; returns 1 with any fault.

    Raises:
        Fatal: a named model is not there.
    """
    store, status = _store(args), 0
    there = {manifest.repository: manifest for manifest in store.models()}
    for name in args.models or there:
        if name not in there:
            raise Fatal(f"{name} is not in {store.folder}, or its download never ended", EXIT_CONFIG)
        faults = store.faults(there[name])
        status = 1 if faults else status
        print("\n".join(f"{name}: {fault}" for fault in faults) or f"{name}: intact")
    return status


def run_remove(args: argparse.Namespace) -> int:
    """Delete models that no engine is configured with.

    Raises:
        Fatal: one is in use or not there.
    """
    folder = args.config_dir / "engines"
    used = {settings.load(path, EngineSettings).model: path.stem for path in sorted(folder.glob("*.yaml"))}
    for name in args.models:
        if name in used:
            raise Fatal(f"{name} is the model of the engine {used[name]}: change that first", EXIT_CONFIG)
        print(f"{name}: {_store(args).remove(name) / _GIB:.1f} GiB freed")
    return 0


def _store(args: argparse.Namespace) -> Store:
    return Store(args.models_dir or MODELS_DIR)
