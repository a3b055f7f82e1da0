"""What is kept of a request after its end, and the last of them, for ``explain``; in memory only."""

from collections import deque

import msgspec


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
    """The last requests.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._records: deque[Record] = deque(maxlen=size)

    def add(self, record: Record) -> None:
        """A request has ended."""
        self._records.append(record)

    def find(self, request_id: str) -> Record | None:
        """The latest request of this identifier."""
        return next((record for record in reversed(self._records) if record.request_id == request_id), None)
