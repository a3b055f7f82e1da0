"""What keys named for debugging ask and are answered, in the log; of all others nothing is ever kept."""

import asyncio
from typing import Any

import structlog

from daemons.gateway.relay.http1 import ChunkedBody, ProtocolError
from daemons.gateway.relay.relay import Client

log = structlog.get_logger()

_MOST = 65536
"""Bytes of a prompt and of an answer that are logged."""


class Content:
    """Takes down one request and its answer.

    Attributes:
        transport: what the relay writes to; everything else of the client's transport is reached through it.
    """

    def __init__(self, prompt: bytes, client: Client) -> None:
        self._prompt = prompt
        self._client = client
        self._answer = bytearray()
        self._size = 0

    @property
    def transport(self) -> asyncio.Transport | None:
        real = self._client.transport
        return None if real is None else _Tee(real, self)

    def take(self, data: bytes) -> None:
        """A piece of the answer as it goes to the client."""
        self._size += len(data)
        if len(self._answer) < _MOST:
            self._answer += data

    def write(self, request_id: str, key: str) -> None:
        """Log it."""
        log.warning(
            "content",
            request_id=request_id,
            key=key,
            prompt=_text(self._prompt),
            answer=_text(_body(bytes(self._answer))),
            prompt_bytes=len(self._prompt),
            answer_bytes=self._size,
        )


class _Tee(asyncio.Transport):
    """A client's transport whose writes are taken down."""

    def __init__(self, real: asyncio.Transport, content: Content) -> None:
        super().__init__()
        self._real = real
        self._content = content

    def write(self, data: Any) -> None:
        self._content.take(bytes(data))
        self._real.write(data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def abort(self) -> None:
        self._real.abort()

    def is_closing(self) -> bool:
        return self._real.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._real.get_write_buffer_size()


def _body(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    try:
        return ChunkedBody().feed(body)
    except ProtocolError:
        return body


def _text(data: bytes) -> str:
    return data[:_MOST].decode(errors="replace")
