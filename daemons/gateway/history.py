"""What is kept of a request after its end, and the last of them, for ``explain``; in memory only."""

from collections import deque

import msgspec

_USUAL_SIZE = 330
"""Bytes of an encoded record."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A request that has ended: its log line, and what ``explain`` shows."""

    request_id: str
    key: str
    model: str
    endpoint: str
    priority: str
    stream: bool
    outcome: str
    """``ok``, or the word of the failure."""
    status: int
    client: str
    """Address of the client; empty where it is not known."""
    engine: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_ms: float
    engine_ms: float | None
    """The engine's part of `ttft_ms`; what neither it nor the queue took was the gateway's."""
    ttft_ms: float | None
    duration_ms: float
    bytes_in: int
    bytes_out: int
    retries: int


class History:
    """The last requests, encoded: as objects they would be twice as large.

    Their memory is taken at the start, so that a gateway does not grow until it has seen as many requests.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._encode_into = msgspec.msgpack.Encoder().encode_into
        self._decode = msgspec.msgpack.Decoder(Record).decode
        self._buffer = bytearray()
        self._records = deque([bytes(_USUAL_SIZE) for _ in range(size)], maxlen=size)

    def add(self, record: Record) -> None:
        """A request has ended."""
        self._encode_into(record, self._buffer)
        # Exactly as large as its content; the encoder's own result keeps the space it was built in.
        self._records.append(bytes(self._buffer))

    def find(self, request_id: str) -> Record | None:
        """The latest request of this identifier."""
        wanted = msgspec.msgpack.encode(request_id)
        for encoded in reversed(self._records):
            if wanted in encoded:
                record = self._decode(encoded)
                if record.request_id == request_id:
                    return record
        return None
