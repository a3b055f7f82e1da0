"""``llmctl up``, ``llmctl stop``: the verbs of a local stack."""

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path

import aiohttp
from rich.console import Console

from daemons.gateway.tenants.key_files import KeyFiles, hash_of, live_secrets
from daemons.llmctl.up import instance
from daemons.llmctl.up.layout import (
    ENGINE,
    KEY_NAME,
    ORIGINAL_ALIAS,
    ORIGINAL_KEY,
    ORIGINAL_KEY_NAME,
    Layout,
    Ports,
    Served,
)
from daemons.llmctl.up.prepare import CHECKOUT, EngineKind, prepare
from daemons.llmctl.up.screen import Screen
from daemons.llmctl.up.stack import Stack
from daemons.llmctl.up.units import Unit
from daemons.runtime import sockets
from daemons.runtime.errors import Fatal
from daemons.runtime.sockets import Address, listen_tcp, port_of

_EXAMPLES = """examples:
  llmctl up
  llmctl up --engine simulator --port 0
  llmctl up --model ./my-model
"""
_STOP_PATIENCE_SEC = 90.0
_HIGHEST_PORT = 65535
_KEEP_LOG_BYTES = 20 * 2**20


def add_parsers(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``up`` and ``stop``."""
    up = verbs.add_parser(
        "up",
        help="run the whole stack in this terminal",
        description="Runs engine, gateway and GPU exporter in the foreground, without root and without "
        "systemd, on loopback only. Ctrl-C stops all of them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    up.add_argument("parts", nargs="*", metavar="PART", help=f"only these of: {', '.join(instance.PARTS)}")
    up.add_argument(
        "--engine",
        choices=[kind.value for kind in EngineKind],
        default=EngineKind.VLLM.value,
        help="vllm: on the GPU where there is one, else on the CPU; simulator: seconds, without a model",
    )
    up.add_argument("--model", help="model folder or hub name (default: SmolLM2-135M-Instruct)")
    up.add_argument(
        "--port", type=_port, default=8080, help="port of the API; 0 takes free ones (default: 8080)"
    )
    _add_state(up)
    up.set_defaults(run=run_up)
    stop = verbs.add_parser("stop", help="end what `up` of this checkout started")
    _add_state(stop)
    stop.set_defaults(run=run_stop)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: expected 0 to {_HIGHEST_PORT}")
    return int(text)


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", type=Path, default=CHECKOUT / ".llm", metavar="FOLDER", help="where keys and logs are kept"
    )


def run_stop(args: argparse.Namespace) -> int:
    """Run ``llmctl stop``."""
    ended = instance.stop(Layout(args.state).run, _STOP_PATIENCE_SEC)
    print(f"stopped: {', '.join(ended)}" if ended else "nothing of this checkout is running")
    return 0


def run_up(args: argparse.Namespace) -> int:
    """Run ``llmctl up``."""
    unknown = [part for part in args.parts if part not in instance.PARTS]
    if unknown:
        print(f"llmctl up: no part is called {unknown[0]!r}: {', '.join(instance.PARTS)}", file=sys.stderr)
        return 2
    screen = Screen(Console(highlight=False))
    layout = Layout(args.state)
    if layout.make():
        screen.line(f"{_shown(layout.state)} was open to other users: it holds keys, and is yours alone now.")
    parts = args.parts or list(instance.PARTS)
    with contextlib.ExitStack() as held:
        held.enter_context(_interruptible())
        for part in parts:
            held.enter_context(instance.claim(layout.run, part))
        ports = Ports.around(args.port)
        gateway_sockets = _bind_gateway(ports) if "gateway" in parts else {}
        held.callback(sockets.close_all, gateway_sockets.values())
        if gateway_sockets:
            instance.write_url(layout.run, f"http://127.0.0.1:{port_of(gateway_sockets['http'])}")
        _configure(args, parts, layout, ports, screen)
        units = [unit for part, unit in _units(layout, gateway_sockets).items() if part in parts]
        return asyncio.run(_run(units, layout, screen, gateway_sockets))


def _configure(
    args: argparse.Namespace, parts: list[str], layout: Layout, ports: Ports, screen: Screen
) -> None:
    """Make ready what `parts` need, and write their settings; those of other parts may be in use."""
    if "engine" in parts:
        engine = prepare(EngineKind(args.engine), args.model, screen)
        layout.write_engine(engine.model, ports, engine.settings)
        layout.note_served(Served(engine.model.name, engine.title))
    if "gateway" in parts:
        layout.write_gateway(layout.served(), ports)
        if layout.write_keys():
            screen.line(
                f"The key {KEY_NAME} was removed; this stack needs one, so it is back: "
                f"`llmctl keys disable {KEY_NAME}` keeps it out."
            )
    if "gpu-exporter" in parts:
        layout.write_exporter(ports)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end preparations as Ctrl-C does: whatever they run ends first."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _bind_gateway(ports: Ports) -> dict[str, socket.socket]:
    """The gateway's listening sockets, held here as systemd would, so that its restart refuses nobody."""
    http = listen_tcp(Address(port=ports.gateway), "PORT")
    try:
        return {"http": http, "metrics": listen_tcp(Address(port=ports.gateway_metrics), "the metrics port")}
    except Exception:
        http.close()
        raise


def _units(layout: Layout, gateway_sockets: Mapping[str, socket.socket]) -> dict[str, Unit]:
    def daemon(module: str, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-m", f"daemons.{module}", *arguments)

    return {
        "gateway": Unit(
            name="llm-gateway",
            command=daemon("gateway", "--config", str(layout.gateway_config)),
            log=_log(layout, "llm-gateway"),
            sockets=gateway_sockets,
        ),
        "gpu-exporter": Unit(
            name="llm-gpu-exporter",
            command=daemon("gpu_exporter", "--config", str(layout.exporter_config)),
            log=_log(layout, "llm-gpu-exporter"),
        ),
        "engine": Unit(
            name=f"llm-engine@{ENGINE}",
            command=daemon("engine", ENGINE, "--config", str(layout.engine_config)),
            log=_log(layout, f"llm-engine@{ENGINE}"),
            timeout_stop_sec=60.0,
        ),
    }


def _log(layout: Layout, name: str) -> Path:
    path = layout.logs / f"{name}.log"
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _KEEP_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    return path


async def _run(units: list[Unit], layout: Layout, screen: Screen, held: Mapping[str, socket.socket]) -> int:
    stack = Stack(units, layout.sockets, screen)
    whole = len(units) == len(instance.PARTS)
    async with stack.running():
        ready = await stack.until_ready()
        if ready and whole:
            ready = await stack.unless_interrupted(_answering(port_of(held["http"])))
        if ready:
            if "http" in held:
                _banner(layout, screen, port_of(held["http"]))
            else:
                screen.line("Running. Ctrl-C stops it.")
            await stack.until_ended()
        screen.line("\nstopping …")
    screen.line("stopped")
    return 0


async def _answering(port: int) -> None:
    """Wait until the gateway has seen that the engine is ready; it looks once a second.

    Raises:
        Fatal: it has not within its own patience.
    """
    async with aiohttp.ClientSession() as http:
        try:
            async with http.get(f"http://127.0.0.1:{port}/ready") as answer:
                if answer.status == HTTPStatus.OK:
                    return
                reason = f"{answer.status}: {(await answer.text()).strip()}"
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error)
    raise Fatal(f"the gateway does not see the engine ({reason}): see the log of llm-gateway")


def _banner(layout: Layout, screen: Screen, port: int) -> None:
    url, served = f"http://127.0.0.1:{port}/v1", layout.served()
    key = layout.key()
    refused = "" if _lets_in(layout, KEY_NAME, key) else f"  (refused: see `llmctl keys list {KEY_NAME}`)"
    original = f"the key {ORIGINAL_KEY} and " if _lets_in(layout, ORIGINAL_KEY_NAME, ORIGINAL_KEY) else ""
    question = "What is the capital of France?"
    body = json.dumps({"model": served.name, "messages": [{"role": "user", "content": question}]})
    screen.line(
        f"""
The LLM API is up.

  URL    {url}
  Key    {key}{refused}
  Model  {served.name}  ({served.title})

  curl {url}/chat/completions -H "Authorization: Bearer {key}" \\
    -H "Content-Type: application/json" -d '{body}'

On this machine only, {original}the model name {ORIGINAL_ALIAS} {"are" if original else "is"} accepted too;
what answers to {ORIGINAL_ALIAS} is {served.title}.
Logs: {_shown(layout.logs)}. Ctrl-C stops everything.
"""
    )


def _lets_in(layout: Layout, name: str, secret: str) -> bool:
    """Whether `secret` is that of the key `name`; the operator may have disabled, rotated or removed it."""
    keys, _ = KeyFiles(layout.keys).read()
    if name not in keys:
        return False
    key, now = keys[name][1], dt.datetime.now(dt.UTC)
    live = not key.disabled and (key.expires is None or key.expires > now)
    return live and any(found.hash == hash_of(secret) for found in live_secrets(key, now))


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
