"""Asks every engine for its state once a second, and tells it the gateway's own view."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import aiohttp
import structlog

from daemons.gateway.pool.engine import Engine
from daemons.runtime.control import EngineReport, EngineState, GatewayView, decode_report

log = structlog.get_logger()

INTERVAL = 1.0
"""Seconds between two questions."""
_ANSWER_WITHIN = aiohttp.ClientTimeout(total=3.0)
_MAX_REPORT = 65536
_PATIENT_MISSES = 3
"""A supervisor may be slow for a moment; an engine in service is not taken out at once for that."""


class Poller:
    """Keeps `engine.report` true.

    An engine on a unix socket has its control socket beside it; one at an ``http(s)`` address may offer
    ``/state`` under its own prefix. Without either, ``/health`` of the API decides. An engine that knows no
    ``/state`` is not asked for it again while it is ready: it would log a 404 a second.

    Attributes:
        engine: whose state it keeps.
        asked: set once the engine's state is known.
    """

    def __init__(self, engine: Engine, changed: Callable[[Engine, EngineReport], None]) -> None:
        """`changed` is called with the engine and its former report whenever the state is another one."""
        self.engine = engine
        self._changed = changed
        self._name = f"gateway-{os.getpid()}"
        self._misses = 0
        self._stateless = False
        self._wake = asyncio.Event()
        self.asked = asyncio.Event()

    def hurry(self) -> None:
        """Ask now: a request met trouble."""
        self._wake.set()

    async def run(self) -> None:
        """Ask for ever."""
        async with self._session(api=False) as control, self._session(api=True) as api:
            while True:
                before = self.engine.report
                self.engine.report = await self._ask(control, api)
                self.asked.set()
                if self.engine.report != before:
                    self._changed(self.engine, before)
                try:
                    async with asyncio.timeout(INTERVAL):
                        await self._wake.wait()
                    # Never more than ten questions a second, however many requests fail.
                    await asyncio.sleep(INTERVAL / 10)
                except TimeoutError:
                    pass
                self._wake.clear()

    def _session(self, *, api: bool) -> aiohttp.ClientSession:
        parts = urlsplit(self.engine.settings.url)
        headers = {"Authorization": self.engine.authorization} if self.engine.authorization else {}
        connector: aiohttp.BaseConnector
        if parts.scheme == "unix":
            path = parts.path if api else str(Path(parts.path).parent / "control.sock")
            connector = aiohttp.UnixConnector(path)
        else:
            connector = aiohttp.TCPConnector(ssl=self.engine.dialer.tls or True)
        return aiohttp.ClientSession(connector=connector, timeout=_ANSWER_WITHIN, headers=headers)

    async def _ask(self, control: aiohttp.ClientSession, api: aiohttp.ClientSession) -> EngineReport:
        now = monotonic()
        view = GatewayView(
            gateway=self._name,
            in_flight=self.engine.in_flight,
            oldest_silence=self.engine.oldest_silence(now),
        )
        try:
            known = self._stateless and self.engine.state is EngineState.READY
            report = None if known else await self._control(control, view)
            if report is None:
                report = await self._health(api)
        except TimeoutError:
            self._misses += 1
            if self._misses < _PATIENT_MISSES:
                return self.engine.report
            return EngineReport(state=EngineState.SICK, reason="does not answer when asked for its state")
        self._misses = 0
        return report

    def _base(self) -> str:
        parts = urlsplit(self.engine.settings.url)
        return "http://engine" if parts.scheme == "unix" else self.engine.settings.url.rstrip("/")

    async def _control(self, session: aiohttp.ClientSession, view: GatewayView) -> EngineReport | None:
        """The supervisor's report; None where there is no supervisor to ask.

        Raises:
            TimeoutError: it does not answer.
        """
        self._stateless = False
        try:
            async with session.get(f"{self._base()}/state", params=view.to_query()) as response:
                self._stateless = response.status == 404
                if response.status != 200:
                    return None
                return decode_report(await _whole(response.content))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            return None

    async def _health(self, session: aiohttp.ClientSession) -> EngineReport:
        try:
            async with session.get(f"{self._base()}/health") as response:
                if response.status == 200:
                    return EngineReport(state=EngineState.READY)
                return EngineReport(state=EngineState.SICK, reason=f"/health answers {response.status}")
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            return EngineReport(state=EngineState.STOPPED, reason="cannot be reached")


async def _whole(content: aiohttp.StreamReader) -> bytes:
    report = b""
    async for piece in content.iter_any():
        report += piece
        if len(report) > _MAX_REPORT:
            raise ValueError("an oversized report")
    return report
