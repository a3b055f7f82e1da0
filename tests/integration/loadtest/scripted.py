"""A server whose every byte a test decides: what real ones rarely do, and a load tester must survive."""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

Behaviour = Callable[[socket.socket], bool | None]
"""Answers one POST on its connection; True closes it."""


def event(data: object) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
EVENTS = b"".join(event({"choices": [{"delta": {"content": word}}]}) for word in "ab")
DONE = b"data: [DONE]\n\n"


def stream(events: bytes = EVENTS + USAGE + DONE, header: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A whole chunked response."""
    head = b"HTTP/%s 200 OK\r\ncontent-type: text/event-stream\r\n%s" % (version, header)
    return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(events), events)


def plain(status: bytes, body: bytes) -> bytes:
    """A response of known length."""
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


class Scripted:
    """Serves `behaviour` on loopback or a unix socket, one thread a connection; a context manager.

    Args:
        behaviour: what answers each POST. GETs are answered as an engine would.
        context: speaks TLS.
        path: of a unix socket.
        greeting: sent at once to every connection, which is not served then; empty for silence.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        *,
        context: ssl.SSLContext | None = None,
        path: Path | None = None,
        greeting: bytes | None = None,
    ) -> None:
        self._behaviour, self._context, self._greeting = behaviour, context, greeting
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            scheme = "http" if context is None else "https"
            self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen()
            self.url = f"unix://{path}"
        self.answered = 0
        self.accepted = threading.Event()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def wait(self, seconds: float) -> None:
        """Do nothing for a while, or until the test is over."""
        self._over.wait(seconds)

    def _accept(self) -> None:
        self._listener.settimeout(0.05)
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                self.accepted.set()
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            connection.settimeout(20)
            if self._greeting is not None:
                connection.sendall(self._greeting)
                self._over.wait()
                return
            if self._context is not None:
                connection = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            while (request := self._read(connection)) and not self._over.is_set():
                if request.startswith(b"GET"):
                    connection.sendall(plain(b"200 OK", b'{"data":[{"id":"m"}]}'))
                    continue
                self.answered += 1
                if self._behaviour(connection):
                    return

    def _read(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(connection)
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        size = int(lengths[0].partition(b":")[2]) if lengths else 0
        while len(body) < size:
            body += self._more(connection)
        return head

    def _more(self, connection: socket.socket) -> bytes:
        connection.settimeout(0.1)
        deadline = time.monotonic() + 30
        while not self._over.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if data := connection.recv(65536):
                    connection.settimeout(20)
                    return data
                break
        raise ConnectionError
