"""``llmctl doctor``: every known trouble of this host, with its cure."""

import argparse
import datetime as dt
import sys

import msgspec
from rich.console import Console
from rich.text import Text

from daemons.llmctl.host.checks import EVERY, findings
from daemons.llmctl.host.checks.finding import Finding
from daemons.llmctl.host.machine import Machine, ThisMachine
from daemons.llmctl.host.state import deployed, look
from daemons.llmctl.host.view import troubles
from daemons.runtime.errors import Fatal

_NOT_DEPLOYED = 3


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``doctor``."""
    parser = verbs.add_parser(
        "doctor",
        help="look for every known trouble of this host and name its cure",
        description="For a host that the service was deployed to; llmctl status is for what `up` runs. "
        "Changes nothing. As root it sees everything; other users see less. Exit status: 0 when nothing is "
        "wrong (warnings allowed), 1 with a fault, 3 when nothing was deployed here.",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=lambda args: run(args, ThisMachine()))


def run(args: argparse.Namespace, machine: Machine) -> int:
    """Run ``llmctl doctor``; returns its exit status.

    Raises:
        Fatal: the service was not deployed here.
    """
    if not deployed(machine):
        raise Fatal(
            "the service is not deployed to this host: ansible/deploy.yml does that; "
            "llmctl status is for what `llmctl up` runs",
            _NOT_DEPLOYED,
        )
    found = findings(EVERY, machine, look(machine, dt.datetime.now(dt.UTC)))
    well = all(finding.warning for finding in found)
    if args.json:
        report = {"ok": well, "checks": [_name(check) for check in EVERY], "findings": found}
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _print(found)
    return 0 if well else 1


def _name(check: object) -> str:
    return str(getattr(check, "__name__", check))


def _print(found: list[Finding]) -> None:
    console = Console(highlight=False)
    for line in troubles(found):
        console.print(line, soft_wrap=True)
    if not found:
        console.print(Text(f"{len(EVERY)} checks, nothing is wrong", style="green"))
