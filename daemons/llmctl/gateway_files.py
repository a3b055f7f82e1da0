"""Where the gateway of this host, or of this checkout, keeps its files; times as operators write them."""

import argparse
import datetime as dt
import re
from pathlib import Path

from daemons.gateway import settings
from daemons.gateway.settings import GatewaySettings
from daemons.llmctl.up.prepare import CHECKOUT
from daemons.runtime.cli import CONFIG_DIR
from daemons.runtime.errors import EXIT_CONFIG, Fatal

_CHECKOUT_DIR = CHECKOUT / ".llm"
_CHECKOUT_CONFIG = _CHECKOUT_DIR / "gateway.yaml"
_DURATION = re.compile(r"(\d+)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the gateway's settings file (default: /etc/llm/gateway.yaml, else that of `make up` here)",
    )


def config_dir() -> Path:
    """The folder of this host's settings, or that of `make up` where only this checkout runs something."""
    return (
        _CHECKOUT_DIR if _CHECKOUT_DIR.is_dir() and not (CONFIG_DIR / "gateway.yaml").exists() else CONFIG_DIR
    )


def load(args: argparse.Namespace) -> GatewaySettings:
    """The settings named by ``--config``, else this host's, else this checkout's.

    Raises:
        Fatal: there are none, or they cannot be used.
    """
    path = args.config
    if path is None:
        path = next((p for p in (CONFIG_DIR / "gateway.yaml", _CHECKOUT_CONFIG) if p.exists()), None)
    if path is None:
        raise Fatal(
            f"there is no gateway here: neither {CONFIG_DIR / 'gateway.yaml'} nor {_CHECKOUT_CONFIG} exists; "
            "name its settings with --config FILE",
            EXIT_CONFIG,
        )
    return settings.load(path)


def moment(text: str) -> dt.datetime:
    """A time: ``30d`` from now (s, m, h, d, w), a day (its beginning, UTC), or a time with its zone."""
    duration = _DURATION.fullmatch(text)
    try:
        if duration:
            seconds = int(duration[1]) * _SECONDS[duration[2]]
            return dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=seconds)
        given = dt.datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: write 24h, 30d, 2027-01-31 or 2027-01-31T12:00:00Z"
        ) from None
    return given if given.tzinfo else given.replace(tzinfo=dt.UTC)


def day(text: str) -> str:
    """A day as in 2027-01-31, or ``30d``, so long ago."""
    duration = _DURATION.fullmatch(text)
    if duration and duration[2] in "dw":
        days = int(duration[1]) * _SECONDS[duration[2]] // 86400
        return (dt.datetime.now(dt.UTC).date() - dt.timedelta(days=days)).isoformat()
    try:
        return dt.date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: write 2027-01-31, or 30d") from None
