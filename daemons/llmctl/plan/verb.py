"""The command line of ``llmctl plan``."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from daemons.engine.plan.advice import advise
from daemons.engine.plan.catalogue import COMMON
from daemons.engine.plan.memory import QUANTIZATIONS
from daemons.llmctl import gateway_files
from daemons.llmctl.models import MODELS_DIR
from daemons.llmctl.plan.sources import Found, Gpus, Sources, from_catalogue, gpus_here
from daemons.llmctl.plan.view import Row, as_json, bar, configuration, ledger_table, table
from daemons.runtime.cli import CONFIG_DIR, counted
from daemons.runtime.errors import EXIT_CONFIG, Fatal

_MILDEST_FIRST = ("int8", "awq")

_EPILOG = """\
examples:
  llmctl plan meta-llama/Llama-3.1-8B-Instruct         from the hub, without weights, for this host
  llmctl plan ./model --gpus 2 --gpu-memory 47.5       a folder, for two cards of 47.5 GiB
  llmctl plan Llama-3-70B --quantization awq --context 32768
  llmctl plan --all                                    common models on this host
  llmctl plan --all --gpus 2 --gpu-memory 47.5         where this host has no GPU

All sizes are GiB (2^30 bytes); vendors print GB (10^9). Exit status: 0 fits, 1 does not.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``plan`` to `llmctl`'s verbs."""
    parser = subparsers.add_parser(
        "plan",
        help="memory, capacity and a configuration for a model",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a folder, ORGANISATION/NAME[@REVISION], or a name of --all"
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs (default: those of this host)")
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="memory of one GPU as NVML reports it"
    )
    parser.add_argument(
        "--context",
        type=int,
        default=8192,
        metavar="TOKENS",
        help="tokens of one request (default: %(default)s)",
    )
    parser.add_argument("--quantization", metavar="METHOD", help="awq, gptq, int8, fp8, mxfp4")
    parser.add_argument(
        "--kv-cache-dtype", choices=("auto", "fp8"), default="auto", help="numbers in the cache"
    )
    parser.add_argument(
        "--utilization",
        type=float,
        default=0.90,
        metavar="SHARE",
        help="share of a GPU's memory that the engine may take (default: %(default)s)",
    )
    parser.add_argument("--all", action="store_true", help="the table of common models")
    parser.add_argument("--json", action="store_true", help="for scripts: sizes in bytes")
    here = gateway_files.config_dir()
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=MODELS_DIR if here == CONFIG_DIR else here / "models",
        metavar="FOLDER",
        help="where downloaded models are (default: %(default)s)",
    )
    parser.add_argument(
        "--config-dir",
        type=Path,
        default=here,
        metavar="FOLDER",
        help="where the hub's token is (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit status 0 when it fits, 1 when not.

    Raises:
        Fatal: no such model, or no GPU is known.
    """
    _check(args)
    gpus = gpus_here(args.gpus, args.gpu_memory)
    rows = (
        [_row(args, gpus, *entry, from_catalogue(entry[0])) for entry in COMMON]
        if args.all
        else [_named(args, gpus)]
    )
    if args.json:
        print(json.dumps([as_json(row) for row in rows], indent=2))
        return 0 if args.all or rows[0].advice.tensor_parallel else 1
    console = Console(highlight=False)
    console.print(table(rows, gpus, args.context))
    for note in gpus.notes:
        console.print(note, markup=False)
    if args.all:
        return 0
    console.print(ledger_table(rows[0], args.context))
    console.print(bar(rows[0].advice), markup=False)
    console.print(rows[0].advice.reason, markup=False)
    if rows[0].advice.tensor_parallel:
        console.print(configuration(rows[0].advice, args.context, args.utilization), markup=False)
    return 0 if rows[0].advice.tensor_parallel else 1


def _check(args: argparse.Namespace) -> None:
    faults = [
        f"--{name.replace('_', '-')}: expected a number above 0"
        for name in ("gpus", "gpu_memory", "context")
        if (value := getattr(args, name)) is not None and value <= 0
    ]
    if not 0 < args.utilization <= 1:
        faults.append("--utilization: expected a share above 0 and up to 1")
    if args.quantization not in (None, *QUANTIZATIONS):
        known = ", ".join(QUANTIZATIONS)
        faults.append(f"--quantization: {args.quantization!r} is unknown; known are {known}")
    if bool(args.model) == args.all:
        faults.append("name a model, or give --all")
    if faults:
        raise Fatal("\n".join(faults), EXIT_CONFIG)


def _named(args: argparse.Namespace, gpus: Gpus) -> Row:
    found = Sources(args.models_dir, args.config_dir).find(args.model)
    row = _row(args, gpus, args.model, args.quantization, found)
    if row.advice.tensor_parallel or args.quantization or found.shape.quantization:
        return row
    for method in _MILDEST_FIRST:
        milder = _row(args, gpus, args.model, method, found).advice
        if milder.tensor_parallel:
            needed = counted(milder.tensor_parallel, "GPU")
            hint = f"with --quantization {method} it would: {needed}, {milder.reason}"
            return replace(row, advice=replace(row.advice, reason=f"{row.advice.reason}; {hint}"))
    return row


def _row(args: argparse.Namespace, gpus: Gpus, name: str, quantization: str | None, found: Found) -> Row:
    weights = found.quantized(quantization)
    advice = advise(
        found.shape,
        weights,
        gpus.memory,
        gpus=gpus.count,
        context=args.context,
        utilization=args.utilization,
        kv_element_bytes=_element_bytes(args),
        measured={} if quantization else found.measured(gpus.name),
    )
    return Row(name, quantization or found.shape.quantization, weights, advice)


def _element_bytes(args: argparse.Namespace) -> int | None:
    return 1 if args.kv_cache_dtype == "fp8" else None
