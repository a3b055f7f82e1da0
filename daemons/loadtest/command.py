"""Runs the command line: one run, a capacity search or a comparison; saves and shows the result."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console

from daemons.loadtest.conduct import Job, Observer, conduct
from daemons.loadtest.keys import binding_limits, read_secrets
from daemons.loadtest.load.plan import Plan, Poisson
from daemons.loadtest.measure.capacity import Capacity, Probe, find_capacity
from daemons.loadtest.measure.compare import Comparison, compare, load_result
from daemons.loadtest.measure.results import Result
from daemons.loadtest.measure.saved import saved
from daemons.loadtest.options import build_plan
from daemons.loadtest.report.live import LiveDisplay, PlainLines
from daemons.loadtest.report.page import render_page
from daemons.loadtest.report.text import print_capacity, print_comparison, print_result
from daemons.loadtest.target import discover, parse_target, require_embeddings, served_model
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

_PLAIN_WIDTH = 160


class Exit(IntEnum):
    """Exit statuses; the most serious one wins."""

    DONE = 0
    MISSED = 1
    INVALID = 3
    TARGET_GONE = 4
    WORSE = 5
    INTERRUPTED = 130


def run(args: argparse.Namespace) -> int:
    """Run what the command line asks for; returns the exit status.

    Raises:
        Fatal: it cannot be run.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    plan = build_plan(args)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    baseline = load_result(args.compare) if args.compare is not None else None
    _check_outputs([path for path in (args.json, args.html) if path is not None])
    job = await _prepare(args, plan, console)
    observer = _observer(args, console)
    capacity: Capacity | None = None
    if args.find_capacity:
        capacity = await _search(args, job, plan, observer, console)
        result = _representative(capacity)
    else:
        result = await conduct(job, plan, observer)
    comparison = compare(baseline, result) if baseline is not None else None
    print_result(console, result)
    if comparison is not None:
        print_comparison(console, comparison)
    if capacity is not None:
        print_capacity(console, capacity)
    _save(args, result, comparison, capacity)
    for path in (args.json, args.html):
        if path is not None:
            console.print(f"Saved {path}", soft_wrap=True)
    return exit_status(result, comparison, capacity)


def _check_outputs(paths: Sequence[Path]) -> None:
    """Say before the run, not after it, that its result could not be saved."""
    for path in paths:
        folder = path.absolute().parent
        if not folder.is_dir():
            raise Fatal(f"{path}: there is no folder {folder}", EXIT_CONFIG)
        if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
            raise Fatal(f"{path}: cannot be written; name a file in a folder that is yours", EXIT_CONFIG)


async def _prepare(args: argparse.Namespace, plan: Plan, console: Console) -> Job:
    target = parse_target(args.url)
    secrets = read_secrets(plan)
    if args.keys_dir is not None:
        for warning in binding_limits(plan, secrets, args.keys_dir):
            console.print(f"Warning: {warning}", style="yellow")
    others = [kind.model for kind in plan.mix if kind.model is not None]
    model = await served_model(target, secrets[0], plan.model, others)
    embedding = {kind.model or model for kind in plan.mix if kind.endpoint == "embeddings"}
    await require_embeddings(target, secrets[0], sorted(embedding))
    sources = args.metrics if args.metrics is not None else await discover(target)
    return Job(url=args.url, target=target, model=model, secrets=secrets, sources=list(sources))


def _observer(args: argparse.Namespace, console: Console) -> Observer:
    if console.is_terminal and not args.plain:
        return LiveDisplay(console)
    return PlainLines(console)


async def _search(
    args: argparse.Namespace, job: Job, plan: Plan, observer: Observer, console: Console
) -> Capacity:
    if not plan.objectives:
        raise Fatal("--find-capacity needs at least one --objective to meet", EXIT_CONFIG)
    if not isinstance(plan.load, Poisson):
        raise Fatal("--find-capacity searches the rate of Poisson arrivals; leave --shape out", EXIT_CONFIG)

    left = plan.budget

    async def probe(rate: float) -> Result:
        nonlocal left
        load = plan.load.model_copy(update={"rate": rate})
        result = await conduct(job, plan.model_copy(update={"load": load, "budget": left}), observer)
        left = left.less(result.sent_requests, result.used_tokens)
        return result

    def report(probe: Probe) -> None:
        console.print(f"{probe.rate:.3f} requests/s: {probe.verdict}: {probe.why}")

    return await find_capacity(probe, plan.load.rate, args.max_rate, report)


def _representative(capacity: Capacity) -> Result:
    """The run at the capacity, or the first one when no rate was met."""
    met = [probe for probe in capacity.probes if probe.rate == capacity.low and probe.verdict == "met"]
    return (met[-1] if met else capacity.probes[0]).result


def _save(
    args: argparse.Namespace, result: Result, comparison: Comparison | None, capacity: Capacity | None
) -> None:
    if args.json is not None:
        _write(args.json, msgspec.json.encode(saved(result, comparison, capacity)))
    if args.html is not None:
        _write(args.html, render_page(result, comparison, capacity).encode())


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise Fatal(describe_os_error(error, "save the result")) from None


def exit_status(
    result: Result, comparison: Comparison | None = None, capacity: Capacity | None = None
) -> Exit:
    """The status of a finished command."""
    last = capacity.probes[-1].result if capacity is not None else result
    missed = capacity.low is None if capacity is not None else not result.objectives_met
    found = (
        (last.stopped_by == "asked", Exit.INTERRUPTED),
        (result.stopped_by == "target died" or result.overall.unanswered, Exit.TARGET_GONE),
        (set(result.overall.outcomes) - {"cancelled"} and not result.overall.ok, Exit.MISSED),
        (not result.valid, Exit.INVALID),
        (missed, Exit.MISSED),
        (comparison is not None and comparison.regressed, Exit.WORSE),
    )
    return next((status for holds, status in found if holds), Exit.DONE)
