"""The target: read from the command line, asked what it serves, and looked at for metrics."""

import asyncio
import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote, unquote, urlsplit

import aiohttp
import msgspec

from daemons.loadtest.client.connection import Target
from daemons.loadtest.measure.scrape import Kind, Source
from daemons.runtime.errors import EXIT_CONFIG, Fatal

_GONE = 4
"""Exit status: nothing to load."""
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_GLANCE = aiohttp.ClientTimeout(total=1)
_NOT_OFFERED = frozenset({400, 404, 405, 422, 501})
_STANDARD_PORTS: tuple[tuple[Kind, int], ...] = (
    ("gateway", 9102),
    ("gpu", 9101),
    *(("engine", port) for port in range(9110, 9118)),
)
_SIGNS: dict[Kind, str] = {"gateway": "llm_gateway_", "engine": "vllm:", "gpu": "gpu_"}


_HOST = re.compile(r"[^\s/]+")


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def parse_target(url: str) -> Target:
    """The target that `url` names: ``http://HOST[:PORT]``, ``https://…`` or ``unix:///PATH``.

    Raises:
        Fatal: it names no single host, or carries more than an address.
    """
    shown = url.rpartition("@")[2]  # a key may have been put there
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Fatal(f"--url {shown}: {error}", EXIT_CONFIG) from None
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return Target(host="localhost", port=80, unix_path=unquote(parts.path))
    if parts.scheme not in {"http", "https"} or not parts.hostname or not _HOST.fullmatch(parts.hostname):
        raise Fatal(
            f"--url {shown}: name the target in full, as in http://localhost:8080 or unix:///run/x.sock",
            EXIT_CONFIG,
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise Fatal("--url takes an address only; an API key goes in a file (--key-file)", EXIT_CONFIG)
    if _is_wildcard(parts.hostname):
        raise Fatal(f"--url {shown}: {parts.hostname} is no host; name the one to load", EXIT_CONFIG)
    if port == 0:
        raise Fatal(f"--url {shown}: 0 is no port to load; name the one that is listened on", EXIT_CONFIG)
    tls = parts.scheme == "https"
    port = port or (443 if tls else 80)
    base = quote(parts.path.rstrip("/").removesuffix("/v1"), safe="/%:@!$&'()*+,;=~")
    return Target(host=parts.hostname, port=port, tls=tls, base_path=base)


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(target: Target) -> bool:
    if target.unix_path is not None or target.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(target.host).is_loopback
    except ValueError:
        return False


def _url(target: Target, path: str) -> str:
    return f"{'https' if target.tls else 'http'}://{target.host_header}{target.base_path}{path}"


def _session(target: Target, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    connector = aiohttp.UnixConnector(target.unix_path) if target.unix_path is not None else None
    return aiohttp.ClientSession(connector=connector, timeout=timeout)


async def served_model(target: Target, secret: str, wanted: str | None, others: Sequence[str] = ()) -> str:
    """The model to ask for: `wanted`, or the first that the target lists.

    Args:
        target: whom to ask.
        secret: an API key, or empty.
        wanted: the model of every request that names no other.
        others: models that some requests name instead.

    Raises:
        Fatal: nobody answers there, the key is refused, a model is not among those that are listed, or
            none is listed and none is wanted.
    """
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    try:
        async with (
            _session(target, _TIMEOUT) as session,
            session.get(_url(target, "/v1/models"), headers=headers, allow_redirects=False) as response,
        ):
            status, body = response.status, await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError, UnicodeError) as error:
        where = target.unix_path or f"{target.host}:{target.port}"
        raise Fatal(f"no answer from {where}: {_reason(error)}", _GONE) from None
    if status in {401, 403}:
        raise Fatal(
            f"the target refuses the API key ({status}): give a valid one with --key-file", EXIT_CONFIG
        )
    listed = _listed(body) if status == 200 else []
    for name in (wanted, *others):
        # A target that lists nothing may serve it nevertheless.
        if name is not None and listed and name not in listed:
            raise Fatal(f"the target has no model {name!r}; it lists: {', '.join(listed)}", EXIT_CONFIG)
    if wanted is not None:
        return wanted
    if not listed:
        raise Fatal(f"the target lists no model ({status} from /v1/models): name one with --model", _GONE)
    return listed[0]


async def require_embeddings(target: Target, secret: str, models: Iterable[str]) -> None:
    """Have one text embedded by each of `models`, before thousands of requests are refused.

    Raises:
        Fatal: a model does not embed there. What may pass, such as a target that is busy, is none of this.
    """
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    async with _session(target, _TIMEOUT) as session:
        for model in models:
            body = {"model": model, "input": "Hello"}
            try:
                async with session.post(
                    _url(target, "/v1/embeddings"), json=body, headers=headers, allow_redirects=False
                ) as response:
                    status = response.status
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue
            if status in _NOT_OFFERED:
                raise Fatal(
                    f"the target has no embeddings of the model {model!r} ({status} from /v1/embeddings): "
                    "name a model that embeds with --model, or load another --endpoint",
                    EXIT_CONFIG,
                )


def _listed(body: bytes) -> list[str]:
    try:
        models = msgspec.json.decode(body, type=_Models).data
    except msgspec.MsgspecError:
        return []
    return [model.id for model in models if model.id and model.id.isprintable()]


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"its certificate is not trusted ({error.certificate_error}); name the authority that signed it "
            "with SSL_CERT_FILE=FILE"
        )
    if isinstance(error, aiohttp.ClientSSLError):
        return "it does not speak TLS; is it http:// instead of https://?"
    if isinstance(error, aiohttp.ClientConnectorDNSError | UnicodeError):
        return "there is no host of that name"
    if isinstance(error, TimeoutError):
        return f"nothing came for {_TIMEOUT.total:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return f"{os.strerror(number) if number else error.os_error}: is the target running?"
    return f"what answers there is no HTTP server of this API ({type(error).__name__})"


async def discover(target: Target) -> Sequence[Source]:
    """Metrics of the target itself, and on the standard ports when it is on this machine."""
    candidates: list[Source] = []
    if target.unix_path is None:
        candidates.append(Source("engine", _url(target, "/metrics")))
    if _is_loopback(target):
        candidates += [Source(kind, f"http://127.0.0.1:{port}/metrics") for kind, port in _STANDARD_PORTS]
    async with aiohttp.ClientSession(timeout=_GLANCE) as session:
        found = await asyncio.gather(*(_shows(session, source) for source in candidates))
    return [source for source, shown in zip(candidates, found, strict=True) if shown]


async def _shows(session: aiohttp.ClientSession, source: Source) -> bool:
    try:
        async with session.get(source.url, allow_redirects=False) as response:
            return response.status == 200 and _SIGNS[source.kind] in await response.text()
    except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError):
        return False
