"""``llmctl download`` and ``llmctl models``: models on this host."""

import argparse
import json
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from daemons.engine.config import EngineSettings, is_folder
from daemons.engine.models.hub import Hub
from daemons.engine.models.store import Store
from daemons.llmctl import gateway_files
from daemons.llmctl.download_view import DownloadView
from daemons.runtime import settings
from daemons.runtime.cli import CONFIG_DIR
from daemons.runtime.credentials import Credentials
from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.notify import SystemdNotifier

_GIB = 1 << 30
_AT_ONCE = 3

Wanted = tuple[str, str | None, Path]
"""Repository, revision and the folder of models."""
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
        if name == "list":
            verb.add_argument("--json", action="store_true", help="for scripts: sizes in bytes")
        verb.set_defaults(run=run)


def _common(parser: argparse.ArgumentParser) -> None:
    here = gateway_files.config_dir()
    local = here != CONFIG_DIR
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=here / "models" if local else None,
        metavar="FOLDER",
        help=f"where models are kept (default: {here / 'models' if local else MODELS_DIR})",
    )
    parser.add_argument(
        "--config-dir",
        type=Path,
        default=here,
        metavar="FOLDER",
        help="where engines are configured (default: %(default)s)",
    )


def run_download(args: argparse.Namespace) -> int:
    """Fetch several models at once; every one is tried, the first failure decides the exit status.

    Raises:
        Fatal: with a line for each model that could not be had.
    """
    hub = Hub(token=Credentials(args.config_dir).get("hf-token"))

    def fetch(wanted: Wanted) -> Fatal | None:
        repository, revision, folder = wanted
        try:
            manifest = hub.download(repository, revision, Store(folder), partial(view.report, repository))
        except Fatal as failure:
            return failure
        print(
            f"{repository} is complete at {manifest.revision} in {Store(folder).path(repository)}", flush=True
        )
        return None

    with DownloadView(SystemdNotifier()) as view:
        failures = _each(fetch, _wanted(args))
    if failures:
        raise Fatal("\n".join(map(str, failures)), failures[0].exit_code)
    return 0


def _each(fetch: Callable[[Wanted], Fatal | None], wanted: Sequence[Wanted]) -> list[Fatal]:
    """Fetch several at once; returns the failures in order. Ctrl-C does not wait for the threads."""
    slots = threading.Semaphore(_AT_ONCE)
    failures: dict[int, Fatal] = {}

    def work(index: int, one: Wanted) -> None:
        with slots:
            failure = fetch(one)
        if failure is not None:
            failures[index] = failure

    threads = [threading.Thread(target=work, args=entry, daemon=True) for entry in enumerate(wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [failures[index] for index in sorted(failures)]


def _wanted(args: argparse.Namespace) -> list[Wanted]:
    """Repository, revision and folder of each model to fetch, none twice."""
    named = [
        (name.partition("@")[0], name.partition("@")[2] or None, args.models_dir or MODELS_DIR)
        for name in args.models
    ]
    if not args.models or args.engine:
        named += _configured(args)
    return list(dict.fromkeys(named))


def _configured(args: argparse.Namespace) -> list[Wanted]:
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
    found = [
        manifest
        for manifest in _store(args).models()
        if not args.models or manifest.repository in args.models
    ]
    rows: list[dict[str, Any]] = [
        {
            "model": manifest.repository,
            "revision": manifest.revision,
            "asked": manifest.asked,
            "files": len(manifest.files),
            "bytes": sum(entry.size for entry in manifest.files.values()),
        }
        for manifest in found
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table("model", "revision", "files", "GiB")
    for row in rows:
        table.add_row(row["model"], row["revision"][:12], str(row["files"]), f"{row['bytes'] / _GIB:.1f}")
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
