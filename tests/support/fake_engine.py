"""An engine that does exactly what a test tells it to, down to single bytes on the wire."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


class Call:
    """A request that has arrived, and the connection to answer it on."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes, peer: "_Peer") -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self._peer = peer

    @property
    def json(self) -> dict[str, Any]:
        """The body as JSON."""
        value: dict[str, Any] = json.loads(self.body)
        return value

    async def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._peer.writer.write(data)
        await self._peer.writer.drain()

    async def send_json(self, value: object, status: int = 200) -> None:
        """A whole response."""
        body = json.dumps(value, separators=(",", ":")).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        await self.send(head.encode() + body)

    async def send_event(self, value: object) -> None:
        """One server-sent event in one chunk."""
        await self.send(event(value))

    def reset(self) -> None:
        """Cut the connection."""
        self._peer.writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the other side has closed the connection."""
        with contextlib.suppress(ConnectionError):
            await self._peer.reader.read()


def chunk(data: bytes) -> bytes:
    """`data` as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: object) -> bytes:
    """`value`, JSON or a text, as an event in one chunk."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return chunk(f"data: {text}\n\n".encode())


def delta(text: str, **more: object) -> dict[str, object]:
    """A piece of a chat answer."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}


def usage(prompt: int, completion: int) -> dict[str, int]:
    """A ``usage`` object."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


class _Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer


Script = Callable[[Call], Awaitable[None]]


class FakeEngine:
    """On a loopback port; every request but ``/health``, ``/state`` and ``/metrics`` goes to `script`."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.health = 200
        self.state: dict[str, object] | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Cut everything, as a crash would."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await self._one(_Peer(reader, writer))
        except asyncio.CancelledError:
            return
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, peer: _Peer) -> None:
        head = (await peer.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        body = await peer.reader.readexactly(int(headers.get("content-length", "0")))
        call = Call(method, path, headers, body, peer)
        if path == "/health":
            await call.send_json({}, self.health)
        elif path == "/metrics":
            await call.send_json({"detail": "Not Found"}, 404)
        elif path.startswith("/state"):
            if self.state is None:
                await call.send_json({"detail": "Not Found"}, 404)
            else:
                await call.send_json(self.state)
        else:
            self.calls.append(call)
            await self.script(call)


class HeldStream:
    """A script: a stream stands still after its first piece until `go_on` is set; others are answered."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        if not call.json.get("stream"):
            await answer_chat(call)
            return
        await call.send(STREAM_HEAD)
        await call.send_event(delta("a", usage=usage(7, 1)))
        await self.go_on.wait()
        await call.send(event("[DONE]") + END)


async def answer_chat(call: Call) -> None:
    """What a healthy engine does: two tokens, with usage as it is asked for."""
    if not call.json.get("stream"):
        message = {"role": "assistant", "content": "Hello"}
        await call.send_json(
            {
                "id": "chatcmpl-1",
                "model": "m",
                "choices": [{"index": 0, "message": message}],
                "usage": usage(7, 2),
            }
        )
        return
    options = call.json.get("stream_options") or {}
    each = bool(options.get("continuous_usage_stats"))
    await call.send(STREAM_HEAD)
    for count, text in enumerate(("", "Hel", "lo")):
        await call.send_event(delta(text, **({"usage": usage(7, count)} if each else {})))
    if options.get("include_usage"):
        last = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": []}
        await call.send_event({**last, "usage": usage(7, 2)})
    await call.send_event("[DONE]")
    await call.send(END)
