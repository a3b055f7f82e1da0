"""The verb: ``llmctl top [--once] [--json]``."""

import argparse
import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from daemons.llmctl import gateway_files
from daemons.llmctl.top.readings import read
from daemons.llmctl.top.sources import Addresses, Pages, configured, fetch
from daemons.llmctl.top.view import screen
from daemons.runtime.cli import CONFIG_DIR
from daemons.runtime.errors import Fatal

_INTERVAL = 1.0
_KEY_WINDOW = 15
"""Readings over which the rates of keys are taken: tokens are counted in a lump, when a request ends."""
_WIDTH = 80


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``top`` to the verbs."""
    parser = subparsers.add_parser(
        "top",
        help="live view of GPUs, engines and keys",
        description="Live view of GPUs, the engines on them, and the keys that load them; q quits.\n\n"
        f"A key is shown while it has requests in flight, and for {_KEY_WINDOW} s after one has ended; with\n"
        "--once, which looks for a second, only where that falls into it. Past use: llmctl usage.",
        epilog="examples:\n  llmctl top\n  llmctl top --once --json | jq '.gpus[].utilization'\n"
        "  ssh -t gpu-host llmctl top",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="print one reading and exit")
    parser.add_argument("--json", action="store_true", help="print JSON; with --once")
    parser.add_argument(
        "--config-dir",
        type=Path,
        metavar="DIR",
        help=f"where the addresses are read (default: {CONFIG_DIR}, else what `up` runs in this checkout)",
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
    found = configured(args.config_dir or gateway_files.config_dir())
    engines = dict(found.engines)
    for item in args.engine:
        name, separator, url = item.partition("=")
        if not (name and separator and url):
            raise Fatal(f"--engine {item}: expected NAME=URL", 2)
        engines[name] = url
    return Addresses(args.exporter or found.exporter, args.gateway or found.gateway, engines, found.gpus)


async def _once(addresses: Addresses, as_json: bool) -> int:
    async with aiohttp.ClientSession() as session:
        before = await fetch(session, addresses)
        await asyncio.sleep(_INTERVAL)
        reading = read(await fetch(session, addresses), before, placed=addresses.gpus)
    if as_json:
        print(msgspec.json.encode(asdict(reading)).decode())
    else:
        Console(width=_WIDTH).print(screen(reading))
    return 1 if len(reading.silent) == 2 + len(addresses.engines) else 0


async def _live(addresses: Addresses) -> None:
    """Until q is pressed, even while an address keeps us waiting."""
    quit_ = asyncio.Event()
    with _pressed(quit_):
        quitting, showing = asyncio.create_task(quit_.wait()), asyncio.create_task(_show(addresses))
        await asyncio.wait((quitting, showing), return_when=asyncio.FIRST_COMPLETED)
        quitting.cancel()
        showing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await showing


async def _show(addresses: Addresses) -> None:
    past: deque[Pages] = deque(maxlen=_KEY_WINDOW)
    async with aiohttp.ClientSession() as session:
        with Live(Text("asking …", style="dim"), screen=True, auto_refresh=False) as live:
            while True:
                now = await fetch(session, addresses)
                before, earlier = (past[-1], past[0]) if past else (None, None)
                reading = read(now, before, earlier, addresses.gpus)
                live.update(screen(reading, live=True), refresh=True)
                past.append(now)
                await asyncio.sleep(_INTERVAL)


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
