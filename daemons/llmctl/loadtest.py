"""``llmctl loadtest``: load a server and report what its clients met."""

import argparse

from daemons.loadtest import command, options


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb; its arguments carry `run`."""
    parser = subparsers.add_parser(
        "loadtest",
        help="load a server and report what its clients met",
        description=options.DESCRIPTION,
        epilog=options.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the load test; returns its exit status.

    Raises:
        Fatal: it cannot be run.
    """
    return command.run(args)
