"""Keep-alive connections to one engine."""

import asyncio
import ssl
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

from daemons.gateway.relay.upstream import EngineConnection, Outbox

_IDLE_SECONDS = 3.0
"""An idle connection older than this is not used again: uvicorn closes at 5 s, and a request that crosses
the close on its way is lost."""
_MAX_IDLE = 1024
_FULL_SECONDS = 0.01
"""Until an engine whose queue of connections is full is asked once more."""


class Dialer:
    """Opens connections to an engine's address and keeps the idle ones.

    Args:
        url: ``unix:///path`` or ``http(s)://host:port/prefix``.
        ca_file: authorities for ``https``.
        connect_timeout: seconds.
    """

    def __init__(self, url: str, ca_file: Path | None, connect_timeout: float) -> None:
        parts = urlsplit(url)
        self._timeout = connect_timeout
        self._idle: list[EngineConnection] = []
        self._outbox = Outbox()
        self._unix = parts.path if parts.scheme == "unix" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self.tls = ssl.create_default_context(cafile=ca_file)
        self.prefix = "" if self._unix else parts.path.rstrip("/")
        self.authority = "engine" if self._unix else parts.netloc

    def take(self, now: float) -> EngineConnection | None:
        """An idle connection fit for another request, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since < _IDLE_SECONDS and not connection.transport.is_closing():
                return connection
            connection.transport.abort()
        return None

    async def open(self) -> EngineConnection:
        """A new connection.

        Raises:
            OSError: it cannot be had; `TimeoutError` is one.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            if self._unix is None:
                _, made = await loop.create_connection(self._make, self._host, self._port, ssl=self.tls)
                return made
            while True:
                try:
                    _, made = await loop.create_unix_connection(self._make, self._unix)
                except BlockingIOError:
                    # It lives and is behind with accepting. Over TCP the kernel itself would wait.
                    await asyncio.sleep(_FULL_SECONDS)
                else:
                    return made

    def _make(self) -> EngineConnection:
        return EngineConnection(self, self._outbox)

    def release(self, connection: EngineConnection) -> None:
        """Take back a connection that can carry another request."""
        connection.idle_since = monotonic()
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.transport.abort()

    def forget(self, connection: EngineConnection) -> None:
        """The connection is closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Drop the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.transport.abort()
