"""``llmctl keys``: who may use the gateway."""

import argparse
import datetime as dt
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from daemons.gateway.settings import PRIORITIES
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.key_files import (
    KeyFiles,
    hash_of,
    is_managed,
    live_secrets,
    new_secret,
    rotated,
)
from daemons.gateway.tenants.keys import KeySettings
from daemons.llmctl import gateway_files
from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.settings import Place, explain

_ADD = """\
Makes a key and prints its secret, once: only its hash is kept. The gateway takes it over within a second.

  llmctl keys add team-a --requests-per-minute 600 --tokens-per-minute 200000 --concurrency 16
  llmctl keys add nightly --class batch --models llama-8b --tokens-per-day 50000000
  llmctl keys add guest --expires 30d --network 192.0.2.0/24 --network 2001:db8::/32

Without a limit option there is no limit of that kind: a key without --concurrency can fill the queue alone.
Budgets are renewed at midnight UTC and on the first of the month; tokens are those of prompt and answer
together.
"""
_ROTATE = """\
Gives a key a new secret and prints it, once. The former one works on for --keep, so that clients have time to
change; there are never more than two.

  llmctl keys rotate team-a
  llmctl keys rotate team-a --keep 0s          it has leaked: the former one ends at once
  llmctl keys rotate team-a --keep 2027-01-31
"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``keys``."""
    parser = verbs.add_parser("keys", help="add, list, rotate, disable and remove API keys")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_add(_action(actions, "add", run_add, "make a key", _ADD))
    listing = _action(actions, "list", run_list, "what keys there are, their limits and state")
    listing.add_argument("name", nargs="*", metavar="NAME", help="only these")
    rotate = _action(actions, "rotate", run_rotate, "give a key a new secret; the former works on", _ROTATE)
    rotate.add_argument("name", metavar="NAME")
    rotate.add_argument(
        "--keep",
        type=gateway_files.moment,
        default="24h",
        metavar="TIME",
        help="how long the former secret works: 24h, 7d, or a time as in 2027-01-31 (default: 24h)",
    )
    for name, run, text in (
        ("disable", run_disable, "refuse a key until it is enabled again"),
        ("enable", run_enable, "let a disabled key in again"),
        ("remove", run_remove, "delete a key; what it used stays in the ledger"),
    ):
        _action(actions, name, run, text).add_argument("name", metavar="NAME")


def _action(actions: Any, name: str, run: Any, text: str, description: str = "") -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = actions.add_parser(
        name,
        help=text,
        description=description or f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gateway_files.add_config_option(made)
    made.add_argument("--json", action="store_true", help="for scripts")
    made.set_defaults(run=run)
    return made


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="how logs, metrics and bills name it")
    parser.add_argument("--models", default="*", metavar="A,B", help="models it may use (default: all)")
    parser.add_argument(
        "--class",
        dest="priority",
        choices=PRIORITIES,
        default="default",
        help="waiting requests of a more urgent class, here named first, go first (default: default)",
    )
    limits = parser.add_argument_group("limits")
    for name, field in Bounds.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        limits.add_argument(option, type=_count, metavar="N", help=(field.description or "").rstrip("."))
    more = parser.add_argument_group("where and how long")
    more.add_argument(
        "--expires", type=gateway_files.moment, metavar="TIME", help="30d, 2027-01-31, 2027-01-31T12:00:00Z"
    )
    more.add_argument(
        "--network", action="append", default=[], metavar="CIDR", help="a network it may be used from"
    )
    more.add_argument(
        "--cache-group", metavar="NAME", help="keys of one group share the engines' prefix caches"
    )


def _count(text: str) -> int:
    """A whole number, for example 200000, 200_000 or 200k."""
    found = re.fullmatch(r"(\d[\d_]*)([kKmM]?)", text)
    size = int(found[1]) * {"": 1, "k": 1000, "m": 1_000_000}[found[2].lower()] if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no limit: write a whole number of 1 or more, as in 200000, 200k or 5M"
        )
    return size


def run_add(args: argparse.Namespace) -> int:
    """Make a key.

    Raises:
        Fatal: the name is taken, or a value cannot be used.
    """
    secret = new_secret()
    given = {
        "name": args.name,
        "secrets": [hash_of(secret)],
        "models": [model.strip() for model in args.models.split(",") if model.strip()],
        "class": args.priority,
        "limits": {name: getattr(args, name) for name in Bounds.model_fields},
        "expires": args.expires,
        "networks": args.network,
        "cache_group": args.cache_group,
    }
    try:
        key = KeySettings.model_validate(given)
    except ValidationError as error:
        # A network that is none is a fault of each kind of address; dict.fromkeys keeps one.
        faults = dict.fromkeys(_fault(given, where, text) for where, text in explain(error, KeySettings))
        raise Fatal("\n".join(faults), EXIT_CONFIG) from None
    settings = gateway_files.load(args)
    path = KeyFiles(settings.keys).add(key)
    _warn_if_useless(key, {model for engine in settings.engines for model in engine.models})
    _show_secret(args, key.name, secret, f"written to {path}")
    return 0


def _fault(given: dict[str, Any], where: Place, text: str) -> str:
    match where:
        case ("networks", int(at), *_):
            return f"--network {given['networks'][at]!r} is no network: write 192.0.2.0/24 or 2001:db8::/32"
        case ("name" | "cache_group" as field,):
            what = "a name" if field == "name" else "--cache-group"
            return (
                f"{given[field]!r} cannot be {what}: write at most 64 letters, digits, '.', '_' and '-', "
                "a letter or digit first"
            )
    return f"{'.'.join(map(str, where))}: {text}"


def _warn_if_useless(key: KeySettings, served: set[str]) -> None:
    unknown = sorted({*key.models} - served - {"*"})
    if unknown:
        known = ", ".join(sorted(served))
        print(f"llmctl: warning: no engine serves {', '.join(unknown)}; served are: {known}", file=sys.stderr)
    if key.expires is not None and key.expires <= dt.datetime.now(dt.UTC):
        print(
            f"llmctl: warning: {key.name} has expired already ({_time(key.expires)}): it lets nobody in",
            file=sys.stderr,
        )


def run_rotate(args: argparse.Namespace) -> int:
    """Give a key a new secret.

    Raises:
        Fatal: there is no such key, or it cannot be written.
    """
    files, secret, now = _files(args), new_secret(), dt.datetime.now(dt.UTC)
    path, key = files.get(args.name)
    _warn_if_managed(args.name, path)
    files.write(path, rotated(key, secret, args.keep, now))
    until = (
        f"the former one works until {_time(args.keep)}" if args.keep > now else "the former one has ended"
    )
    _show_secret(args, args.name, secret, until)
    return 0


def run_disable(args: argparse.Namespace) -> int:
    """Refuse a key."""
    return _set_disabled(args, True)


def run_enable(args: argparse.Namespace) -> int:
    """Let a key in again."""
    return _set_disabled(args, False)


def run_remove(args: argparse.Namespace) -> int:
    """Delete a key.

    Raises:
        Fatal: there is no such key, or it cannot be deleted.
    """
    files = _files(args)
    path, _ = files.get(args.name)
    _warn_if_managed(args.name, path)
    files.remove(path)
    _say(args, {"name": args.name, "removed": True}, f"{args.name} is removed")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Print keys; returns 78 when a file cannot be used.

    Raises:
        Fatal: the folder cannot be read, or a named key is not there.
    """
    files = _files(args)
    keys, faults = files.read()
    for name in args.name:
        files.get(name)
    chosen = [key for name, (_, key) in keys.items() if not args.name or name in args.name]
    now = dt.datetime.now(dt.UTC)
    for fault in faults:
        print(f"llmctl: {fault}", file=sys.stderr)
    if args.json:
        json.dump([_described(key, now) for key in chosen], sys.stdout, indent=2)
        print()
    else:
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        empty = "There is no key yet: llmctl keys add NAME"
        Console(highlight=False, width=width).print(table(chosen, now) if chosen else empty)
    return EXIT_CONFIG if faults else 0


_PIPE_WIDTH = 10_000
"""Columns where no terminal sets them: a line for each key, which scripts can cut."""


def table(keys: Sequence[KeySettings], now: dt.datetime) -> Table:
    """A row for each key; names stay whole, the rest wraps."""
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    for column in ("state", "class", "models", "limits", "expires", "networks"):
        table.add_column(column, overflow="fold")
    for key in keys:
        limits = [
            f"{_short(n)} {_WORDS[name]}" for name, n in key.limits.model_dump().items() if n is not None
        ]
        table.add_row(
            key.name,
            _state(key, now),
            key.priority,
            ", ".join(key.models),
            ", ".join(limits) or "none",
            _time(key.expires) if key.expires else "never",
            ", ".join(map(str, key.networks)) or "any",
        )
    return table


_WORDS = {
    "requests_per_minute": "req/min",
    "tokens_per_minute": "tok/min",
    "concurrency": "at once",
    "tokens_per_day": "tok/day",
    "tokens_per_month": "tok/month",
}


def _short(number: int) -> str:
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= size and number % size == 0:
            return f"{number // size}{letter}"
    return str(number)


def _state(key: KeySettings, now: dt.datetime) -> str:
    live = live_secrets(key, now)
    if key.disabled:
        return "disabled"
    if (key.expires is not None and key.expires <= now) or not live:
        return "expired"
    ends = [secret.expires for secret in live if secret.expires is not None]
    return f"rotating until {_time(min(ends))}" if ends and len(live) > 1 else "active"


def _described(key: KeySettings, now: dt.datetime) -> dict[str, Any]:
    described = key.model_dump(mode="json", by_alias=True, exclude={"secrets"})
    secrets = [s.expires.isoformat() if s.expires else None for s in live_secrets(key, now)]
    return described | {"state": _state(key, now).split()[0], "secrets_expire": secrets}


def _set_disabled(args: argparse.Namespace, disabled: bool) -> int:
    files = _files(args)
    path, key = files.get(args.name)
    _warn_if_managed(args.name, path)
    files.write(path, key.model_copy(update={"disabled": disabled}))
    state = "disabled" if disabled else "enabled"
    _say(args, {"name": args.name, "disabled": disabled}, f"{args.name} is {state}")
    return 0


def _files(args: argparse.Namespace) -> KeyFiles:
    return KeyFiles(gateway_files.load(args).keys)


def _warn_if_managed(name: str, path: Path) -> None:
    if is_managed(path):
        print(
            f"llmctl: {name} comes from the inventory, and the next deployment writes it anew: "
            "change llm_keys there too",
            file=sys.stderr,
        )


def _show_secret(args: argparse.Namespace, name: str, secret: str, note: str) -> None:
    if args.json:
        json.dump({"name": name, "key": secret}, sys.stdout)
        print()
        return
    # The secret alone goes to standard output, so that it can be piped into a vault.
    print(f"{name}: {note}. The secret is shown this once:", file=sys.stderr)
    print(secret)


def _say(args: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    print(json.dumps(value) if args.json else text)


def _time(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
