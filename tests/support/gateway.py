"""A gateway inside the test's own event loop, on free loopback ports."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from pydantic import SecretStr

from daemons.gateway import settings
from daemons.gateway.gateway import Gateway
from daemons.gateway.succession import Succession
from daemons.runtime.sockets import Address, listen_tcp, port_of

KEY = "test-key"
BEARER = {"Authorization": f"Bearer {KEY}"}
PATIENT = {"connect": 60}
"""Timeouts of every gateway: a busy machine connects later than one would wait for an engine."""


def write_key(folder: Path, name: str, secret: str = KEY, **more: object) -> Path:
    """A key file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    half = path.with_suffix(".new")
    half.write_text(yaml.safe_dump({"name": name, "secrets": [f"sha256:{digest}"], **more}))
    half.rename(path)
    return path


class Running:
    """A gateway that serves, and a client for it."""

    def __init__(
        self, gateway: Gateway, port: int, metrics_port: int, session: aiohttp.ClientSession
    ) -> None:
        self.gateway = gateway
        self.port = port
        self.metrics_port = metrics_port
        self.session = session

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def ask(self, path: str, body: object, key: str = KEY, **headers: str) -> aiohttp.ClientResponse:
        """POST `body`; the response is read to its end."""
        merged = {"Authorization": f"Bearer {key}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        response = await self.session.post(self.url + path, json=body, headers=merged)
        await response.read()
        return response

    async def chat(self, **body: Any) -> aiohttp.ClientResponse:
        """A chat completion with model ``m``."""
        messages = [{"role": "user", "content": "Hi"}]
        return await self.ask("/v1/chat/completions", {"model": "m", "messages": messages, **body})

    def streaming(self, **body: Any) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A chat completion as a stream, to be read piece by piece."""
        asked = {"model": "m", "messages": [], "stream": True, **body}
        return self.session.post(f"{self.url}/v1/chat/completions", json=asked, headers=BEARER)

    async def metrics(self) -> dict[str, float]:
        """Samples of the metrics port, by name and labels."""
        async with self.session.get(f"http://127.0.0.1:{self.metrics_port}/metrics") as response:
            text = await response.text()
        lines = (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, _, value in lines}

    async def raw(self, data: bytes) -> bytes:
        """Everything the gateway says to `data` until it closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until `condition` holds: a predicate over the gateway or its engines, of which no event tells."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def idle(running: Running) -> bool:
    """Whether nothing is on its way."""
    pool = running.gateway.pool
    return all(engine.in_flight == 0 and not engine.relays for engine in pool.engines)


@contextlib.asynccontextmanager
async def gateway(
    tmp_path: Path,
    *engine_urls: str,
    redis_password: str | None = None,
    succession: Succession | None = None,
    timeouts: dict[str, Any] | None = None,
    **more: Any,
) -> AsyncIterator[Running]:
    """A gateway before engines that serve model ``m``, with one key; `more` are further settings."""
    engines = [{"name": f"e{i}", "url": url, "models": ["m"]} for i, url in enumerate(engine_urls)]
    config = tmp_path / "gateway.yaml"
    if not (tmp_path / "keys.d").exists():
        write_key(tmp_path / "keys.d", "team")
    config.write_text(yaml.safe_dump({"engines": engines, "timeouts": PATIENT | (timeouts or {}), **more}))
    http, metrics = listen_tcp(Address(port=0)), listen_tcp(Address(port=0))
    port, metrics_port = port_of(http), port_of(metrics)
    password = SecretStr(redis_password) if redis_password else None
    made = await asyncio.to_thread(
        lambda: Gateway(
            settings.load(config), b"secret", [http], [metrics], succession, redis_password=password
        )
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        try:
            await made.start()
            running = Running(made, port, metrics_port, session)
            if engine_urls:
                async with session.get(f"{running.url}/ready") as response:
                    await response.read()
            yield running
        finally:
            await session.close()
            # A test may have stopped it already.
            await made.stop()
