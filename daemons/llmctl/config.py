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
from daemons.runtime import settings
from daemons.runtime.cli import CONFIG_DIR
from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.settings import ConfigError, Fault, Settings

MODELS: dict[str, type[Settings]] = {
    "gateway": GatewaySettings,
    "engine": EngineSettings,
    "gpu-exporter": GpuExporterSettings,
    "key": KeySettings,
}


def add_parser(subparsers: Any) -> None:
    """Add ``config`` to `llmctl`'s verbs."""
    parser = subparsers.add_parser("config", help="check, show and describe the settings files")
    verbs = parser.add_subparsers(metavar="ACTION", required=True)
    check = verbs.add_parser("check", help="check every file below the folder; exit status 78 with any fault")
    check.add_argument("folder", nargs="?", type=Path, default=CONFIG_DIR, metavar="FOLDER")
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
    for name, model in (("gateway.yaml", GatewaySettings), ("gpu-exporter.yaml", GpuExporterSettings)):
        if (folder / name).exists():
            yield folder / name, model
    yield from ((path, EngineSettings) for path in sorted((folder / "engines").glob("*.yaml")))
    yield from ((path, KeySettings) for path in sorted((folder / "keys.d").glob("*.yaml")))


def run_check(args: argparse.Namespace) -> int:
    """Print every fault of every file; returns 0 or 78.

    Raises:
        Fatal: there are no files.
    """
    files = list(files_below(args.folder))
    if not files:
        raise Fatal(f"there are no settings files below {args.folder}", EXIT_CONFIG)
    faults: list[Fault] = []
    for path, model in files:
        try:
            settings.load(path, model)
        except ConfigError as error:
            faults += error.faults
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(files)} files, {len(faults)} faults")
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
