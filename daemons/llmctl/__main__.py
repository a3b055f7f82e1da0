"""``llmctl``: the operator's command. Each verb is a module of its own."""

import argparse
import os
import sys

from daemons.llmctl.up import verb as up
from daemons.runtime.cli import guard
from daemons.runtime.version import VERSION


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmctl",
        description="Runs and looks after an LLM inference stack.",
        epilog="`llmctl VERB --help` explains a verb.",
    )
    parser.add_argument("--version", action="version", version=f"llmctl {VERSION}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    up.add_parsers(verbs)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``llmctl``; returns its exit status."""
    args = _parser().parse_args(argv)
    return guard("llmctl", os.environ.get("LLM_LOG_LEVEL", "warning"), lambda: int(args.run(args)))


if __name__ == "__main__":
    sys.exit(main())
