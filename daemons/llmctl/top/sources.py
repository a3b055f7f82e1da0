"""Where the numbers are: metrics addresses from the configuration or the command line, and fetching them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from daemons.llmctl.up.layout import read_yaml

_EXPORTER_PORT, _GATEWAY_PORT = 9101, 9102
_TIMEOUT = aiohttp.ClientTimeout(total=3)


@dataclass(frozen=True, slots=True)
class Addresses:
    """URLs of metrics pages; engines by name.

    Attributes:
        gpus: those that the settings give each engine, as written there.
    """

    exporter: str
    gateway: str
    engines: Mapping[str, str]
    gpus: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Pages:
    """Metrics pages as text; None where nothing answered.

    Attributes:
        at: monotonic time at which the pages were asked for.
    """

    at: float
    exporter: str | None
    gateway: str | None
    engines: Mapping[str, str | None]


def configured(folder: Path) -> Addresses:
    """The addresses in the configuration under `folder`; the usual ones where it says nothing.

    Raises:
        Fatal: a file there is not readable YAML.
    """
    engines = {path.stem: read_yaml(path) for path in sorted(folder.glob("engines/*.yaml"))}
    return Addresses(
        exporter=_url(read_yaml(folder / "gpu-exporter.yaml"), "listen", _EXPORTER_PORT),
        gateway=_url(read_yaml(folder / "gateway.yaml"), "metrics", _GATEWAY_PORT),
        engines={name: _url(content, "metrics", 0) for name, content in engines.items()},
        gpus={name: _gpus(content) for name, content in engines.items()},
    )


def _url(content: dict[str, Any], key: str, port: int) -> str:
    address = content.get(key)
    if not isinstance(address, dict):
        address = {}
    host = str(address.get("host", "127.0.0.1"))
    # An address to listen on everywhere is reached at home.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{host}:{address.get('port', port)}/metrics"


def _gpus(content: dict[str, Any]) -> tuple[str, ...]:
    gpus = content.get("gpus")
    return tuple(str(gpu) for gpu in gpus) if isinstance(gpus, list) else ()


async def fetch(session: aiohttp.ClientSession, addresses: Addresses) -> Pages:
    """All pages at once; an address that does not answer costs three seconds and yields None."""
    names = list(addresses.engines)
    urls = [addresses.exporter, addresses.gateway, *(addresses.engines[name] for name in names)]
    # Before, not after: one address that does not answer must not move the others' time.
    at = asyncio.get_running_loop().time()
    exporter, gateway, *engines = await asyncio.gather(*(_page(session, url) for url in urls))
    return Pages(at, exporter, gateway, dict(zip(names, engines, strict=True)))


async def _page(session: aiohttp.ClientSession, url: str) -> str | None:
    try:
        async with session.get(url, timeout=_TIMEOUT) as response:
            return await response.text() if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
