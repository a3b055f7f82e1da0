"""The last requests, for ``explain`` and ``top``; in memory only."""

from collections import deque
from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]


class History:
    """The request lines of the last requests.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._lines: deque[Fields] = deque(maxlen=size)

    def add(self, fields: Fields) -> None:
        """A request has ended."""
        self._lines.append(fields)

    def find(self, request_id: str) -> Fields | None:
        """The latest request of this identifier."""
        return next((line for line in reversed(self._lines) if line["request_id"] == request_id), None)
