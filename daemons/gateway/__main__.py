"""``llm-gateway``: the command."""

import secrets
import sys
from argparse import Namespace

from daemons.gateway import settings
from daemons.gateway.gateway import Gateway
from daemons.gateway.tenants.keys import KeyFolder, KeyRing
from daemons.runtime import cli, lifecycle, sockets
from daemons.runtime.credentials import Credentials

_PROG = "llm-gateway"
_DESCRIPTION = "OpenAI-compatible API in front of the inference engines"


def main(argv: list[str] | None = None) -> int:
    """Run the gateway; returns the exit status."""
    parser = cli.parser(_PROG, _DESCRIPTION, cli.CONFIG_DIR / "gateway.yaml")
    options = parser.parse_args(argv)
    if options.check:
        return cli.report_check(_PROG, lambda: _check(options))
    return cli.guard(_PROG, options.log_level, lambda: _run(options))


def _check(options: Namespace) -> str:
    loaded = settings.load(options.config)
    keys = KeyFolder(loaded.keys, KeyRing()).check()
    return f"{options.config} is good: {len(loaded.engines)} engines, {len(keys)} keys"


def _run(options: Namespace) -> int:
    loaded = settings.load(options.config)
    handed = sockets.inherited()
    http = handed.get("http") or [sockets.listen_tcp(loaded.listen, "listen")]
    metrics = handed.get("metrics") or [sockets.listen_tcp(loaded.metrics, "metrics")]
    return lifecycle.run(Gateway(loaded, _salt_secret(options), http, metrics))


def _salt_secret(options: Namespace) -> bytes:
    """The credential ``cache-salt``; without one, caches are told apart by a secret of this process."""
    given = Credentials(options.config.resolve().parent).get("cache-salt")
    return given.get_secret_value().encode() if given else secrets.token_bytes(32)


if __name__ == "__main__":
    sys.exit(main())
