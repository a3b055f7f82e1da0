"""The command line that every daemon shares: ``--config``, ``--check``, ``--log-level``, ``--version``."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from daemons.runtime import logs
from daemons.runtime.errors import Fatal, describe_os_error
from daemons.runtime.version import VERSION

CONFIG_DIR = Path("/etc/llm")


def parser(prog: str, description: str, config: Path | None, epilog: str = "") -> argparse.ArgumentParser:
    """An argument parser with the shared options; `config` is the default of ``--config``."""
    made = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--config",
        type=Path,
        default=config,
        metavar="FILE",
        help=f"settings file (default: {config})",
    )
    made.add_argument(
        "--check",
        action="store_true",
        help="validate the settings, name every fault with its place, and exit: 0 when good, 78 when not",
    )
    made.add_argument(
        "--log-level", choices=list(logs.LEVELS), default=os.environ.get("LLM_LOG_LEVEL", "info")
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return made


def guard(prog: str, log_level: str, main: Callable[[], int]) -> int:
    """Set up logging, run `main`, and turn `Fatal` into one line a fault and its exit status."""
    try:
        logs.configure(prog, log_level)
    except Fatal as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.exit_code
    try:
        return main()
    except Fatal as error:
        for line in str(error).splitlines():
            structlog.get_logger().critical(line)
        return error.exit_code
    except OSError as error:
        structlog.get_logger().critical(describe_os_error(error, "go on"), exc_info=error)
        return 1
    except KeyboardInterrupt:
        return 130


def report_check(prog: str, check: Callable[[], str]) -> int:
    """``--check``: run `check`, print its summary or every fault; returns 0 or the fault's exit status."""
    try:
        summary = check()
    except Fatal as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{prog}: {summary}")
    return 0


def counted(number: int, noun: str) -> str:
    """A number and its noun, as in ``1 engine`` and ``2 engines``."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
