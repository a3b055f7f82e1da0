"""``llmctl config check|schema|show``: the settings files of a host."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from daemons.engine.config import EngineSettings
from daemons.gateway.settings import GatewaySettings
from daemons.gateway.tenants.keys import KeySettings
from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.llmctl import gateway_files
from daemons.runtime import settings
from daemons.runtime.cli import CONFIG_DIR, counted
from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.settings import ConfigError, Fault, Settings

MODELS: dict[str, type[Settings]] = {
    "gateway": GatewaySettings,
    "engine": EngineSettings,
    "gpu-exporter": GpuExporterSettings,
    "key": KeySettings,
}
_BY_NAME: dict[str, type[Settings]] = {
    "gateway.yaml": GatewaySettings,
    "gpu-exporter.yaml": GpuExporterSettings,
}
_BY_FOLDER: dict[str, type[Settings]] = {"engines": EngineSettings, "keys.d": KeySettings}


def add_parser(subparsers: Any) -> None:
    """Add ``config`` to `llmctl`'s verbs."""
    parser = subparsers.add_parser("config", help="check, show and describe the settings files")
    verbs = parser.add_subparsers(metavar="ACTION", required=True)
    check = verbs.add_parser(
        "check", help="check a file, or every file below a folder; exit status 78 with any fault"
    )
    check.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="PATH",
        help=f"default: {CONFIG_DIR}, or what `make up` wrote where only this checkout runs something",
    )
    check.set_defaults(run=run_check)
    schema = verbs.add_parser("schema", help="the JSON schema of a file")
    schema.add_argument("kind", choices=list(MODELS))
    schema.set_defaults(run=run_schema)
    show = verbs.add_parser("show", help="a file with every default filled in")
    show.add_argument("kind", choices=list(MODELS))
    show.add_argument("file", type=Path, metavar="FILE")
    show.set_defaults(run=run_show)


def files_below(folder: Path) -> Iterator[tuple[Path, type[Settings]]]:
    """The settings files of a host, each with its definition."""
    yield from ((folder / name, model) for name, model in _BY_NAME.items() if (folder / name).exists())
    for name, model in _BY_FOLDER.items():
        yield from ((path, model) for path in sorted((folder / name).glob("*.yaml")))


def _files(path: Path) -> list[tuple[Path, type[Settings]]]:
    """The settings files that `path` is, or that are below it.

    Raises:
        Fatal: there are none, or the name of the file does not say what it is.
    """
    if not path.is_file():
        found = list(files_below(path))
        if not found:
            raise Fatal(f"there are no settings files below {path}", EXIT_CONFIG)
        return found
    model = _BY_NAME.get(path.name) or _BY_FOLDER.get(path.absolute().parent.name)
    if model is None:
        raise Fatal(
            f"the name of {path} does not say what it is (gateway.yaml, gpu-exporter.yaml, engines/NAME.yaml"
            f", keys.d/NAME.yaml): llmctl config show {{{','.join(MODELS)}}} {path}",
            EXIT_CONFIG,
        )
    return [(path, model)]


def run_check(args: argparse.Namespace) -> int:
    """Print every fault of every file; returns 0 or 78.

    Raises:
        Fatal: there are no files, or the name of one does not say what it is.
    """
    files = _files(args.path or gateway_files.config_dir())
    faults: list[Fault] = []
    for path, model in files:
        try:
            settings.load(path, model)
        except ConfigError as error:
            faults += error.faults
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{counted(len(files), 'file')}, {counted(len(faults), 'fault')}")
    return EXIT_CONFIG if faults else 0


def run_schema(args: argparse.Namespace) -> int:
    """Print a schema."""
    print(json.dumps(MODELS[args.kind].model_json_schema(), indent=2))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print a file as the daemon understands it.

    Raises:
        ConfigError: with every fault of the file.
    """
    loaded = settings.load(args.file, MODELS[args.kind])
    print(yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False), end="")
    return 0
