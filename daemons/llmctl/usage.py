"""``llmctl usage``: what the ledger says."""

import argparse
import csv
import datetime as dt
import json
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from daemons.gateway.tenants.key_files import KeyFiles
from daemons.gateway.tenants.ledger import book
from daemons.gateway.tenants.ledger.book import UsageRow
from daemons.llmctl import gateway_files
from daemons.runtime.cli import counted
from daemons.runtime.errors import Fatal

_DIMENSIONS = ("day", "key", "model")
_COUNTS = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")
_PIPE_WIDTH = 10_000
"""Columns where no terminal sets them: names stay whole for scripts."""
_DESCRIPTION = """\
What keys have used, from the ledger. Cached tokens are part of the prompt's; failed requests are part of the
requests, and what an engine did for them is counted.

  llmctl usage                               this month, by key
  llmctl usage --by day,model --key team-a   one key, day by day
  llmctl usage --since 7d --csv              for a spreadsheet
"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``usage``."""
    parser = verbs.add_parser(
        "usage",
        help="what keys have used, by key, model and day",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gateway_files.add_config_option(parser)
    parser.add_argument(
        "--by",
        type=_dimensions,
        default=("key",),
        metavar="A,B",
        help="some of key, model, day (default: key)",
    )
    first = dt.datetime.now(dt.UTC).date().replace(day=1).isoformat()
    parser.add_argument(
        "--since",
        type=gateway_files.day,
        default=first,
        metavar="DAY",
        help="2027-01-31, or 30d (default: the first of this month); days are UTC's",
    )
    parser.add_argument("--until", type=gateway_files.day, default="9999-12-31", metavar="DAY")
    parser.add_argument("--key", metavar="NAME", help="only this key")
    parser.add_argument("--model", metavar="NAME", help="only this model")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for scripts")
    form.add_argument("--csv", action="store_true", help="for spreadsheets")
    parser.set_defaults(run=run)


def _dimensions(text: str) -> tuple[str, ...]:
    given = [word.strip() for word in text.split(",")]
    if not set(given) <= set(_DIMENSIONS):
        raise argparse.ArgumentTypeError(f"{text!r}: known are {', '.join(_DIMENSIONS)}")
    return tuple(name for name in _DIMENSIONS if name in given)


def run(args: argparse.Namespace) -> int:
    """Print usage.

    Raises:
        Fatal: the days are in the wrong order, there is no ledger, or it cannot be read.
    """
    if args.since > args.until:
        raise Fatal(f"--since {args.since} is later than --until {args.until}", 2)
    settings = gateway_files.load(args)
    path = settings.ledger
    if not path.exists():
        raise Fatal(f"there is no ledger at {path}: the gateway makes it when it first runs")
    since = int(dt.datetime.fromisoformat(args.since).replace(tzinfo=dt.UTC).timestamp() * 1e6)
    try:
        rows = book.usage(
            path, by=args.by, since=args.since, until=args.until, key=args.key, model=args.model
        )
        lost, open_ = book.lost(path, since)
    except sqlite3.Error as error:
        raise Fatal(f"{path} cannot be read: {error}") from None
    if args.key is not None and not rows and args.key not in KeyFiles(settings.keys).read()[0]:
        print(f"llmctl: warning: there is no key named {args.key!r} (llmctl keys list)", file=sys.stderr)
    names = (*args.by, *_COUNTS)
    if args.json:
        json.dump([{name: getattr(row, name) for name in names} for row in rows], sys.stdout, indent=2)
        print()
    elif args.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)
    else:
        _print(rows, args.by)
        _print_notes(path, lost, open_)
    return 0


def _print(rows: Sequence[UsageRow], by: Sequence[str]) -> None:
    table = Table(box=None)
    for name in by:
        table.add_column(name, no_wrap=True)
    for name in _COUNTS:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(getattr(row, name)) for name in by), *(f"{getattr(row, n):,}" for n in _COUNTS))
    if len(rows) > 1:
        table.add_section()
        sums = (f"{sum(getattr(row, name) for row in rows):,}" for name in _COUNTS)
        table.add_row("total", *[""] * (len(by) - 1), *sums, style="bold")
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(highlight=False, width=width).print(table if rows else "Nothing was used in these days.")


def _print_notes(path: Path, lost: int, open_: int) -> None:
    if open_:
        verb = "is on its way" if open_ == 1 else "are on their way"
        print(f"{counted(open_, 'request')} {verb} and not counted yet.")
    if lost:
        print(
            f"{counted(lost, 'request')} ended with a gateway that was killed; what they used is not known "
            f"(outcome {book.LOST} in {path})."
        )
