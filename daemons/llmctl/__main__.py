"""``llmctl``: the operator's command. Each verb is a module of its own."""

import argparse
import os
import signal
import sys

from daemons.llmctl import backup, config, doctor, import_env, keys, loadtest, models, plan, status, usage
from daemons.llmctl.top import verb as top
from daemons.llmctl.up import verb as up
from daemons.runtime import logs
from daemons.runtime.errors import Fatal, describe_os_error
from daemons.runtime.version import VERSION

_SIGPIPE = 128 + signal.SIGPIPE
"""What a shell says of a program that the signal ended."""


def parser() -> argparse.ArgumentParser:
    """The command line of every verb."""
    made = argparse.ArgumentParser(
        prog="llmctl",
        description="Runs and looks after an LLM inference stack.",
        epilog="`llmctl VERB --help` explains a verb.",
    )
    made.add_argument("--version", action="version", version=f"llmctl {VERSION}")
    verbs = made.add_subparsers(title="verbs", metavar="VERB", required=True)
    up.add_parsers(verbs)
    for verb in (status, doctor, top, keys, usage, plan, loadtest, config, import_env):
        verb.add_parser(verbs)
    models.add_parsers(verbs)
    backup.add_parsers(verbs)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run ``llmctl``; returns its exit status."""
    args = parser().parse_args(argv)
    try:
        logs.configure("llmctl", os.environ.get("LLM_LOG_LEVEL", "warning"))
        status = int(args.run(args))
        sys.stdout.flush()
    except Fatal as error:
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGPIPE
    except OSError as error:
        return _complain(describe_os_error(error, "go on"), 1)
    except KeyboardInterrupt:
        return 130
    return status


def _complain(text: str, status: int) -> int:
    for line in text.splitlines():
        print(f"llmctl: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
