"""``llmctl plan``: what a model needs of the GPUs, before it is loaded."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from daemons.engine.gpus import NvmlInventory
from daemons.engine.plan.advice import Advice, advise
from daemons.engine.plan.catalogue import shapes
from daemons.engine.plan.memory import GIB, estimated_weights, kv_bytes_per_token
from daemons.engine.plan.shape import Shape, read_shape
from daemons.engine.plan.weights import weights_in
from daemons.runtime.errors import EXIT_CONFIG, Fatal

_BAR = 40


def add_parser(subparsers: Any) -> None:
    """Add ``plan`` to `llmctl`'s verbs."""
    parser = subparsers.add_parser("plan", help="memory, capacity and a configuration for a model")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a model folder, or a name that --all lists"
    )
    parser.add_argument(
        "--gpus", type=int, default=None, metavar="N", help="GPUs (default: those of this host)"
    )
    parser.add_argument(
        "--gpu-memory", type=float, default=None, metavar="GIB", help="memory of one GPU in GiB"
    )
    parser.add_argument("--context", type=int, default=8192, metavar="TOKENS", help="tokens of one request")
    parser.add_argument("--quantization", default=None, metavar="METHOD", help="awq, gptq, int8, fp8, mxfp4")
    parser.add_argument("--utilization", type=float, default=0.90, metavar="SHARE")
    parser.add_argument("--all", action="store_true", help="the models that are asked for often")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit status 0 when it fits, 1 when not.

    Raises:
        Fatal: no such model, or no GPU is known.
    """
    gpus, gpu_bytes = _gpus(args.gpus, args.gpu_memory)
    if not args.model and not args.all:
        raise Fatal("name a model folder, or give --all", EXIT_CONFIG)
    names = list(shapes()) if args.all else [args.model]
    plans = {}
    for name in names:
        shape, weights = _model(name, args.quantization)
        advice = advise(
            shape, weights, gpu_bytes, gpus=gpus, context=args.context, utilization=args.utilization
        )
        plans[name] = (shape, weights, advice)
    if args.json:
        print(json.dumps({name: _as_json(*plan) for name, plan in plans.items()}, indent=2))
    else:
        console = Console()
        console.print(_table(plans, gpus, gpu_bytes, args.context))
        if not args.all:
            console.print(_bar(plans[args.model][2]), highlight=False)
            console.print(plans[args.model][2].reason, highlight=False)
    return 0 if args.all or plans[args.model][2].tensor_parallel else 1


def _gpus(count: int | None, gib: float | None) -> tuple[int, int]:
    if count is not None and gib is not None:
        return count, int(gib * GIB)
    try:
        found = NvmlInventory().gpus()
    except Fatal as error:
        raise Fatal(f"{error}; or give both --gpus and --gpu-memory", EXIT_CONFIG) from None
    if not found:
        raise Fatal("this host has no GPU: give both --gpus and --gpu-memory", EXIT_CONFIG)
    smallest = min(gpu.memory_bytes for gpu in found)
    return count or len(found), smallest if gib is None else int(gib * GIB)


def _model(name: str, quantization: str | None) -> tuple[Shape, int]:
    known = shapes()
    if name in known:
        return known[name], estimated_weights(known[name], quantization)
    folder = Path(name)
    if not folder.is_dir():
        raise Fatal(f"{name} is neither a folder nor one of: {', '.join(known)}", EXIT_CONFIG)
    shape = read_shape(folder)
    asked_for_more = quantization is not None and shape.quantization is None
    return shape, estimated_weights(shape, quantization) if asked_for_more else weights_in(folder)


def _as_json(shape: Shape, weights: int, advice: Advice) -> dict[str, Any]:
    return {
        "weights_bytes": weights,
        "kv_bytes_per_token": kv_bytes_per_token(shape),
        "advice": {key: value for key, value in asdict(advice).items() if key != "ledger"},
        "ledger": asdict(advice.ledger) | {"kv_cache": advice.ledger.kv_cache},
    }


def _table(plans: dict[str, tuple[Shape, int, Advice]], gpus: int, gpu_bytes: int, context: int) -> Table:
    table = Table(title=f"{gpus} GPU(s) of {gpu_bytes / GIB:.1f} GiB, requests of {context} tokens")
    for heading in (
        "model",
        "weights GiB",
        "KV KiB/token",
        "TP",
        "replicas",
        "KV GiB/GPU",
        "tokens",
        "users",
    ):
        table.add_column(
            heading, justify="left" if heading == "model" else "right", no_wrap=heading == "model"
        )
    for name, (shape, weights, advice) in plans.items():
        entry = advice.ledger
        fits = [f"{advice.tensor_parallel}", f"{advice.replicas}"] if advice.tensor_parallel else ["-", "-"]
        table.add_row(
            name,
            f"{weights / GIB:.1f}",
            f"{kv_bytes_per_token(shape) / 1024:.1f}",
            *fits,
            f"{entry.kv_cache / GIB:.1f}",
            f"{entry.tokens}",
            f"{entry.users(context) * advice.replicas:.1f}",
        )
    return table


def _bar(advice: Advice) -> str:
    entry = advice.ledger
    parts = [
        ("#", entry.weights),
        ("a", entry.activation),
        ("g", entry.graphs + entry.other),
        ("k", max(0, entry.kv_cache)),
        (".", entry.total - entry.budget),
    ]
    bar = "".join(sign * round(_BAR * size / entry.total) for sign, size in parts)
    return f"one GPU: {bar[:_BAR]}  # weights, a activations, g graphs and driver, k KV cache, . left free"
