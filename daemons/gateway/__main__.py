"""``llm-gateway``: the command. It holds the sockets and runs workers, which are the same command again."""

import gc
import os
import resource
import secrets
import sys
from argparse import SUPPRESS, Namespace
from pathlib import Path

from daemons.gateway import reload, settings, succession
from daemons.gateway.gateway import Gateway, require_tracing
from daemons.gateway.master import START_SECONDS, Master, die_with_parent, handed_sockets
from daemons.gateway.tenants.keys import KeyFolder
from daemons.gateway.tenants.ring import KeyRing
from daemons.gateway.tenants.shared import RedisServer
from daemons.runtime import cli, lifecycle, sockets
from daemons.runtime.credentials import Credentials

_PROG = "llm-gateway"
_DESCRIPTION = "OpenAI-compatible API in front of the inference engines"
_RELOAD_MARGIN = 10.0
_EPILOG = """signals:
  SIGHUP   start a new worker with the present configuration and release; the old one drains
  SIGTERM  take no new connection, let what is in flight finish (timeouts.drain), end
"""


def main(argv: list[str] | None = None) -> int:
    """Run the gateway; returns the exit status."""
    parser = cli.parser(_PROG, _DESCRIPTION, cli.CONFIG_DIR / "gateway.yaml", _EPILOG)
    parser.add_argument("--worker", action="store_true", help=SUPPRESS)
    parser.add_argument("--reload", action="store_true", help=SUPPRESS)
    options = parser.parse_args(argv)
    if options.check:
        return cli.report_check(_PROG, lambda: _check(options))
    if options.reload:
        return cli.report_check(_PROG, lambda: reload.ask(os.environ, START_SECONDS + _RELOAD_MARGIN))
    return cli.guard(_PROG, options.log_level, lambda: _work(options) if options.worker else _run(options))


def _check(options: Namespace) -> str:
    loaded = settings.load(options.config)
    keys = KeyFolder(loaded.keys, KeyRing()).check()
    require_tracing(loaded.tracing)
    if loaded.shared_limits is not None:
        # Says whether its client is installed; connects to nothing.
        RedisServer(loaded.shared_limits, None)
    engines, keyed = cli.counted(len(loaded.engines), "engine"), cli.counted(len(keys), "key")
    return f"{options.config} is good: {engines}, {keyed}"


def _run(options: Namespace) -> int:
    loaded = settings.load(options.config)
    handed = sockets.inherited()
    held = {
        "http": handed.get("http") or [sockets.listen_tcp(loaded.listen, "listen")],
        "metrics": handed.get("metrics") or [sockets.listen_tcp(loaded.metrics, "metrics")],
    }
    command = [
        *_this_command(),
        "--worker",
        "--config",
        str(options.config),
        "--log-level",
        options.log_level,
    ]
    master = Master(command, held, loaded.timeouts.drain, lambda: settings.load(options.config))
    return lifecycle.run(master)


def _this_command() -> list[str]:
    """What started this process; after an upgrade the same path, not resolved, leads to the new release.

    The interpreter does not: the script names that of its own release.
    """
    script = Path(sys.argv[0]).absolute()
    return [str(script)] if script.name == _PROG else [sys.executable, "-m", "daemons.gateway"]


def _work(options: Namespace) -> int:
    die_with_parent()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loaded = settings.load(options.config)
    held = handed_sockets()
    # What is loaded by now stays for good, and a request leaves next to no cycles behind.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    place = succession.from_environment(os.environ)
    password = Credentials(options.config.resolve().parent).get("redis-password")
    gateway = Gateway(
        loaded,
        _salt_secret(options),
        held.get("http", []),
        held.get("metrics", []),
        place,
        redis_password=password,
    )
    return lifecycle.run(gateway)


def _salt_secret(options: Namespace) -> bytes:
    """The credential ``cache-salt``; without one, caches are told apart by a secret of this process."""
    given = Credentials(options.config.resolve().parent).get("cache-salt")
    return given.get_secret_value().encode() if given else secrets.token_bytes(32)


if __name__ == "__main__":
    sys.exit(main())
