"""The verb: ``llmctl top [--once] [--json]``."""

import argparse
import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console
from rich.live import Live

from daemons.llmctl.top.readings import read
from daemons.llmctl.top.sources import Addresses, configured, fetch
from daemons.llmctl.top.view import screen
from daemons.runtime.cli import CONFIG_DIR
from daemons.runtime.errors import Fatal

_INTERVAL = 1.0
_WIDTH = 80


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``top`` to the verbs."""
    parser = subparsers.add_parser(
        "top", help="live view of GPUs, engines and keys", description="Live view; q quits."
    )
    parser.add_argument("--once", action="store_true", help="print one reading and exit")
    parser.add_argument("--json", action="store_true", help="print JSON; with --once")
    parser.add_argument(
        "--config-dir", type=Path, default=CONFIG_DIR, metavar="DIR", help="where the addresses are read"
    )
    parser.add_argument("--exporter", metavar="URL", help="the exporter's metrics instead")
    parser.add_argument("--gateway", metavar="URL", help="the gateway's metrics instead")
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME=URL", help="an engine's metrics; repeatable"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run ``llmctl top``; returns its exit status: 1 when nothing at all answered ``--once``.

    Raises:
        Fatal: the options or the configuration are wrong.
    """
    if args.json and not args.once:
        raise Fatal("--json needs --once", 2)
    addresses = _addresses(args)
    if args.once:
        return asyncio.run(_once(addresses, args.json))
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Fatal("this is no terminal: use llmctl top --once", 2)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_live(addresses))
    return 0


def _addresses(args: argparse.Namespace) -> Addresses:
    found = configured(args.config_dir)
    engines = dict(found.engines)
    for item in args.engine:
        name, separator, url = item.partition("=")
        if not (name and separator and url):
            raise Fatal(f"--engine {item}: expected NAME=URL", 2)
        engines[name] = url
    return Addresses(args.exporter or found.exporter, args.gateway or found.gateway, engines)


async def _once(addresses: Addresses, as_json: bool) -> int:
    async with aiohttp.ClientSession() as session:
        before = await fetch(session, addresses)
        await asyncio.sleep(_INTERVAL)
        reading = read(await fetch(session, addresses), before)
    if as_json:
        print(msgspec.json.encode(asdict(reading)).decode())
    else:
        Console(width=_WIDTH).print(screen(reading))
    return 1 if len(reading.silent) == 2 + len(addresses.engines) else 0


async def _live(addresses: Addresses) -> None:
    quit_ = asyncio.Event()
    with _pressed(quit_):
        async with aiohttp.ClientSession() as session:
            before = await fetch(session, addresses)
            with Live(screen(read(before, None)), screen=True, auto_refresh=False) as live:
                while not quit_.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(quit_.wait(), _INTERVAL)
                    now = await fetch(session, addresses)
                    live.update(screen(read(now, before)), refresh=True)
                    before = now


@contextlib.contextmanager
def _pressed(quit_: asyncio.Event) -> Iterator[None]:
    """Set `quit_` when q is pressed; the terminal is as before afterwards."""
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()
    saved = termios.tcgetattr(fd)

    def key() -> None:
        # An empty read is the end of the terminal, as when an ssh connection breaks.
        if os.read(fd, 1) in {b"q", b"Q", b"\x03", b""}:
            quit_.set()

    tty.setcbreak(fd)
    loop.add_reader(fd, key)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)
