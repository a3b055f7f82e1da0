"""Connections to the target: one asyncio protocol each, kept alive and reused, no coroutine per request."""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from time import perf_counter
from typing import cast

import msgspec

from daemons.loadtest.client.exchange import Exchange
from daemons.loadtest.client.records import Outcome
from daemons.loadtest.client.wire import ProtocolError, ResponseParser

Finished = Callable[[Exchange, Outcome, int], None]
"""Called once for every exchange, with how it ended and the HTTP status (0: none)."""

_SLOW_RECEIVE_BUFFER = 4096


class Target(msgspec.Struct, frozen=True):
    """Where requests go."""

    host: str
    port: int
    tls: bool = False
    unix_path: str | None = None
    base_path: str = ""

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Connection(asyncio.Protocol):
    """Carries one exchange at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._parser = ResponseParser()
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._reused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass

    def send(self, exchange: Exchange, head_and_body: tuple[bytes, bytes]) -> None:
        """Begin `exchange`; the connection must be idle."""
        transport = self._transport
        self._exchange = exchange
        self._parser.reset()
        if transport is None:  # closed by the server as soon as it was made
            self._end(Outcome.RESET)
            return
        if exchange.request.bytes_per_second:
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_RECEIVE_BUFFER)
        transport.writelines(head_and_body)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        exchange, parser = self._exchange, self._parser
        if exchange is None:  # nothing was asked: the server misbehaves
            self.close()
            return
        now = perf_counter()
        exchange.touched = now
        try:
            pieces = parser.feed(data)
            if parser.event_stream and parser.status == 200:
                for piece in pieces:
                    exchange.on_event_bytes(piece, now)
            else:
                for piece in pieces:
                    exchange.on_body_bytes(piece)
        except ProtocolError as error:
            exchange.reason = str(error)
            self._end(Outcome.MALFORMED)
            return
        if parser.complete:
            self._end(exchange.outcome(parser.status, event_stream=parser.event_stream))
        elif exchange.request.cancel_after and exchange.events >= exchange.request.cancel_after:
            self._end(Outcome.CANCELLED)
        elif exchange.request.bytes_per_second:
            seconds = len(data) / exchange.request.bytes_per_second
            exchange.touched += seconds  # this silence is the client's own, no stall of the server
            self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.pause_reading()
            self._pool.loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        exchange = self._exchange
        if exchange is None:
            self._pool.forget(self)
            return
        parser = self._parser
        if not parser.started:
            if self._reused and not exchange.redialled:
                # The server closed an idle connection while the request was on its way.
                self._exchange = None
                exchange.redialled = True
                self._pool.send(exchange, fresh=True)
                return
            self._end(Outcome.RESET)
        elif parser.end_of_input():
            self._end(exchange.outcome(parser.status, event_stream=parser.event_stream))
        else:
            self._end(Outcome.CUT)

    def abort(self, outcome: Outcome) -> None:
        """End the exchange under way, and the connection with it."""
        if self._exchange is not None:
            self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        exchange, parser = self._exchange, self._parser
        if exchange is None:
            return
        self._exchange = None
        reusable = parser.complete and parser.keep_alive and not exchange.request.bytes_per_second
        if reusable and self._transport is not None and not self._transport.is_closing():
            self._reused = True
            self._pool.release(self)
        else:
            self.close()
        self._pool.finish(exchange, outcome, parser.status)

    def close(self) -> None:
        """Close the connection without waiting for what is buffered."""
        if self._transport is not None:
            self._transport.abort()


class Pool:
    """Idle connections (the most recently used first), and the exchanges under way.

    Args:
        target: where to connect.
        secrets: API keys by key index; empty strings send no key.
        connect_timeout: seconds.
        finished: called at the end of each exchange.
    """

    def __init__(
        self, target: Target, secrets: list[str], connect_timeout: float, finished: Finished
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.under_way: dict[Exchange, Connection | asyncio.Task[None]] = {}
        self._target = target
        self._ssl = ssl.create_default_context() if target.tls else None
        self._timeout = connect_timeout
        self._finished = finished
        self._idle: list[Connection] = []
        self._heads = [_head_template(target, secret) for secret in secrets]

    def send(self, exchange: Exchange, *, fresh: bool = False) -> None:
        """Begin `exchange` on an idle connection, or on a new one."""
        if self._idle and not fresh and not exchange.request.bytes_per_second:
            self._send_on(self._idle.pop(), exchange)
        else:
            self.under_way[exchange] = self.loop.create_task(self._connect(exchange))

    def _send_on(self, connection: Connection, exchange: Exchange) -> None:
        self.under_way[exchange] = connection
        before, after = self._heads[exchange.request.key]
        request = exchange.request
        head = b"%s%s%s%d\r\n\r\n" % (before, request.path.encode(), after, len(request.body))
        connection.send(exchange, (head, request.body))

    async def _connect(self, exchange: Exchange) -> None:
        target = self._target
        try:
            async with asyncio.timeout(self._timeout):
                if target.unix_path is not None:
                    _, made = await self.loop.create_unix_connection(
                        lambda: Connection(self), target.unix_path
                    )
                else:
                    _, made = await self.loop.create_connection(
                        lambda: Connection(self), target.host, target.port, ssl=self._ssl
                    )
        except TimeoutError:
            exchange.reason = f"no connection within {self._timeout:g} s"
            self.finish(exchange, Outcome.CONNECT_FAILED, 0)
        except (OSError, UnicodeError) as error:
            exchange.reason = _plain(error)
            self.finish(exchange, Outcome.CONNECT_FAILED, 0)
        else:
            self._send_on(made, exchange)

    def release(self, connection: Connection) -> None:
        """Take back a connection that is idle again."""
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """An idle connection was closed by the server."""
        if connection in self._idle:
            self._idle.remove(connection)

    def finish(self, exchange: Exchange, outcome: Outcome, status: int) -> None:
        """Report the end of an exchange."""
        self.under_way.pop(exchange, None)
        self._finished(exchange, outcome, status)

    def abort(self, exchange: Exchange, outcome: Outcome) -> None:
        """End an exchange under way."""
        carrier = self.under_way.get(exchange)
        if isinstance(carrier, Connection):
            carrier.abort(outcome)
        elif carrier is not None:
            carrier.cancel()
            self.finish(exchange, outcome, 0)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()


def _plain(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    return os.strerror(number) if number and number > 0 else str(error)


def _head_template(target: Target, secret: str) -> tuple[bytes, bytes]:
    authorization = f"Authorization: Bearer {secret}\r\n" if secret else ""
    return (
        f"POST {target.base_path}".encode(),
        (
            f" HTTP/1.1\r\nHost: {target.host_header}\r\n{authorization}User-Agent: llmctl-loadtest\r\n"
            "Accept: text/event-stream, application/json\r\nContent-Type: application/json\r\n"
            "Content-Length: "
        ).encode(),
    )
