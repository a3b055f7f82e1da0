"""A client that sees the bytes of a stream as they come."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHAT = "/v1/chat/completions"


def conversation(**changes: Any) -> dict[str, Any]:
    """A streamed chat request that goes on for `max_tokens`."""
    messages = [{"role": "user", "content": "Hello"}]
    return {"model": "m", "messages": messages, "stream": True, "ignore_eos": True, **changes}


def send(where: int | Path, path: str, body: Any, timeout: float = 60) -> socket.socket:
    """A connection on which the request was sent, and nothing read yet."""
    data = json.dumps(body).encode()
    if isinstance(where, Path):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(str(where))
    else:
        sock = socket.create_connection(("127.0.0.1", where), timeout=timeout)
    head = ["Host: m", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    sock.sendall("\r\n".join([f"POST {path} HTTP/1.1", *head, "", ""]).encode() + data)
    return sock


class Stream:
    """One request on a connection of its own; the answer is read event by event."""

    def __init__(self, where: int | Path, path: str = CHAT, body: Any = None, timeout: float = 60) -> None:
        self.sock = send(where, path, conversation() if body is None else body, timeout)
        self._file = self.sock.makefile("rb")
        self.status = int(self._line().split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in iter(self._line, ""))
        self.complete = False

    def _line(self) -> str:
        return self._file.readline().decode().rstrip("\r\n")

    def chunks(self) -> Iterator[bytes]:
        """The HTTP chunks; `complete` tells whether the last of them came."""
        while size := self._line():
            length = int(size, 16)
            data = self._file.read(length)
            self._line()
            if not length:
                self.complete = True
                return
            yield data

    def events(self) -> Iterator[str]:
        """The data of each event, comments included as they are."""
        for chunk in self.chunks():
            assert chunk.endswith(b"\n\n"), "an event is one chunk"
            yield chunk.decode().strip().removeprefix("data: ")

    def rest(self) -> list[str]:
        """All further events."""
        return list(self.events())

    def close(self) -> None:
        """Leave."""
        self._file.close()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def text_of(events: list[str]) -> str:
    """The text that chat events add up to."""
    chunks = [json.loads(event) for event in events if event.startswith("{")]
    return "".join(
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ())
    )
