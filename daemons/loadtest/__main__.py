"""``python -m daemons.loadtest``: the same as ``llmctl loadtest``."""

import argparse
import os
import sys

from daemons.loadtest import command, options
from daemons.runtime.cli import guard


def main(argv: list[str] | None = None) -> int:
    """Run a load test; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="loadtest",
        description=options.DESCRIPTION,
        epilog=options.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_arguments(parser)
    args = parser.parse_args(argv)
    return guard("loadtest", os.environ.get("LLM_LOG_LEVEL", "warning"), lambda: command.run(args))


if __name__ == "__main__":
    sys.exit(main())
