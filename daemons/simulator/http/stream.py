"""Server-sent events, written past every coroutine: one ``write`` on the transport for each event."""

import asyncio
import socket
import struct

from aiohttp import web

from daemons.simulator.faults import Fault

DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
_NOT_JSON = b'data: {"id":"chatcmpl-malformed","choices":[{"delta":{"content":\n\n'


class EventStream:
    """The body of one streamed response. Every event is one HTTP chunk, as uvicorn frames them."""

    def __init__(self, request: web.Request, fault: Fault | None, keep_alive: float) -> None:
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._keep_alive = keep_alive
        self._idle_since = 0.0
        self._fault = fault
        self._left = fault.after_chunks if fault else -1
        self._muted = False

    async def serve(self) -> web.StreamResponse:
        """Send the head, then wait until `close`; the events come from the engine."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        await response.prepare(self._request)
        self._transport = self._request.transport
        timer = self._start_keep_alive()
        try:
            await self._closed
        finally:
            if timer:
                timer.cancel()
        if self._transport is not None:
            await response.write_eof()
        return response

    def send(self, event: bytes) -> None:
        """Write `event`, whole with its ``data:`` and empty line; lost when the client is gone."""
        transport = self._transport
        # uvloop raises on a closed transport, and an error here would end the engine's step loop.
        if transport is None or transport.is_closing():
            return
        if self._left == 0:
            self._break(transport)
        self._left -= 1
        if self._transport is not None and not self._muted:
            transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            if self._keep_alive:
                self._idle_since = self._loop.time()

    def close(self) -> None:
        """The body is complete."""
        if not self._closed.done():
            self._closed.set_result(None)

    def abandon(self) -> None:
        """The body breaks off: the connection closes before it is complete."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        self.close()

    def _break(self, transport: asyncio.Transport) -> None:
        kind = self._fault.fault if self._fault else ""
        if kind == "malformed":
            transport.write(b"%x\r\n%b\r\n" % (len(_NOT_JSON), _NOT_JSON))
            return
        if kind == "cut":
            self._muted = True
            self.close()
            return
        if kind == "reset":
            self._transport = None
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                # Lingering for zero seconds turns the close into a reset (socket(7)).
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
            self.close()
        else:
            self.abandon()

    def _start_keep_alive(self) -> asyncio.Task[None] | None:
        if not self._keep_alive:
            return None
        self._idle_since = self._loop.time()
        return self._loop.create_task(self._keep_alive_loop())

    async def _keep_alive_loop(self) -> None:
        while self._transport is not None:
            wait = self._idle_since + self._keep_alive - self._loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
                continue
            self._transport.write(b"%x\r\n%b\r\n" % (len(_KEEP_ALIVE), _KEEP_ALIVE))
            self._idle_since = self._loop.time()
