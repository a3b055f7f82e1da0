"""``llmctl status``: what this host or this checkout runs, and whether a model would answer."""

import argparse
import datetime as dt
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from daemons.llmctl.host.checks import SERVICE, findings
from daemons.llmctl.host.machine import Machine, ThisMachine
from daemons.llmctl.host.state import deployed, look
from daemons.llmctl.host.view import screen
from daemons.llmctl.up import instance
from daemons.llmctl.up.layout import Layout
from daemons.llmctl.up.prepare import CHECKOUT

_TIMEOUT_SEC = 5.0
_NOT_RUNNING = 3
"""Exit status of ``systemctl status`` for what is not running."""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``status``."""
    parser = verbs.add_parser(
        "status",
        help="say what runs here, and whether a model would answer",
        description="On a deployed host: units, GPUs, engines, keys and, where Prometheus runs, alerts. "
        "Elsewhere: what `up` of this checkout runs. Exit status: 0 when all is well and a request would be "
        "answered, 1 when not, 3 when nothing runs.",
    )
    parser.add_argument(
        "--state", type=Path, metavar="FOLDER", help=f"what `up` runs there (default: {CHECKOUT / '.llm'})"
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run ``llmctl status``."""
    machine = ThisMachine()
    if args.state is None and deployed(machine):
        return host(machine, as_json=args.json)
    layout = Layout(args.state or CHECKOUT / ".llm")
    parts = {part: instance.holder(layout.run, part) for part in instance.PARTS}
    answer = _ask_gateway(layout) if parts["gateway"] else None
    ready = bool(answer and answer["ready"])
    if args.json:
        json.dump({"parts": parts, "gateway": answer, "ready": ready}, sys.stdout)
        print()
    else:
        _print(parts, answer)
    if not any(parts.values()):
        return _NOT_RUNNING
    return 0 if ready else 1


def host(machine: Machine, *, as_json: bool) -> int:
    """The state of a deployed host."""
    state = look(machine, dt.datetime.now(dt.UTC))
    found = findings(SERVICE, machine, state)
    well = all(finding.warning for finding in found)
    if as_json:
        sys.stdout.write(msgspec.json.encode({"ok": well, "state": state, "findings": found}).decode() + "\n")
    else:
        Console(highlight=False).print(screen(state, found))
    if not any(unit.active == "active" for unit in state.units if unit.name.startswith("llm")):
        return _NOT_RUNNING
    return 0 if well else 1


def _ask_gateway(layout: Layout) -> dict[str, Any]:
    url = instance.read_url(layout.run)
    if url is None:
        return {"ready": False, "url": None, "detail": "starting"}
    try:
        with urllib.request.urlopen(f"{url}/ready?wait=0", timeout=_TIMEOUT_SEC):  # noqa: S310 - our own http URL
            return {"ready": True, "url": url, "detail": "ready"}
    except urllib.error.HTTPError as error:
        with error:
            detail = _message(error.read())
        return {"ready": False, "url": url, "detail": detail}
    except OSError as error:
        return {"ready": False, "url": url, "detail": str(error)}


def _message(body: bytes) -> str:
    """What the gateway says in an error."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body.decode(errors="replace").strip()


def _of_gateway(answer: dict[str, Any]) -> str:
    if not answer["url"]:
        return str(answer["detail"])
    if answer["ready"]:
        return f"ready at {answer['url']}"
    return f"not ready at {answer['url']}: {answer['detail']}"


def _print(parts: dict[str, int | None], answer: dict[str, Any] | None) -> None:
    table = Table("part", "run by", "state", box=None)
    for part, pid in parts.items():
        detail = "started, not ready" if part == "engine" and answer and not answer["ready"] else "running"
        if part == "gateway" and answer:
            detail = _of_gateway(answer)
        table.add_row(part, str(pid or "-"), detail if pid else "not running")
    Console(highlight=False).print(table)
