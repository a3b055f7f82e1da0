"""The memory that request bodies take until their answers begin, over all keys and for each."""

from typing import Final

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.metrics import Counter

SMALL: Final = 65536
"""Bytes of a body that is not counted, whether it comes whole or in pieces."""
_SHARE: Final = 3
"""A key may have this part of what is free, which is a quarter of all where it is alone."""


class Bodies:
    """Counts the large bodies, of which the queue could hold more than the machine has memory.

    Args:
        most: bytes of all together.
        largest: bytes of one, which a key may have in any case.
        refused: counts refusals by key and reason.
    """

    def __init__(self, most: int, largest: int, refused: Counter) -> None:
        self._refused = refused
        self._most = most
        self._largest = largest
        self._held = 0
        self._of: dict[str, int] = {}

    def take(self, alias: str, size: int) -> None:
        """Count `size` more bytes for the key `alias`.

        Raises:
            ApiError: the key, or all keys together, would have too many.
        """
        of, free = self._of.get(alias, 0) + size, self._most - self._held - size
        # Measured by what is free, so that however many keys take theirs, they leave room for another's.
        share = max(free // _SHARE, self._largest)
        if of > share:
            self._refused.add((alias, "key_body_bytes"))
            raise ApiError(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"This API key may now have {share} bytes of large requests waiting for their answers,"
                " and this request would be more; try again in 1 s.",
                headers={"Retry-After": "1"},
            )
        if free < 0:
            raise ApiError(
                ErrorCode.QUEUE_FULL,
                "As many large requests as the server can hold wait for their answers; try again in 1 s.",
                headers={"Retry-After": "1"},
            )
        self._of[alias] = of
        self._held += size

    def give_back(self, alias: str, size: int) -> None:
        """Count `size` bytes less."""
        left = self._of[alias] - size
        if left:
            self._of[alias] = left
        else:
            del self._of[alias]
        self._held -= size
