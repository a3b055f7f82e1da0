"""Streams of several answers at once: an engine tells usage answer by answer, of all only at the end."""

import re

from daemons.gateway.relay.sse import OpenAIFilter
from daemons.gateway.relay.usage import TokenCounts

_INDEX = re.compile(rb'"choices":\[\{"index":([0-9]{1,6})')


class ChoicesFilter(OpenAIFilter):
    """An `OpenAIFilter` that knows what was used even if the stream is cut short.

    Args:
        answers: to each prompt; the answers to the first prompt come first in the engine's numbering.
    """

    __slots__ = ("_answers", "_counts")

    def __init__(self, *, keep_final: bool, keep_all: bool, answers: int) -> None:
        super().__init__(keep_final=keep_final, keep_all=keep_all)
        self._answers = answers
        self._counts: dict[int, TokenCounts] = {}

    @property
    def strips(self) -> bool:
        # The short way does not look at which answer an event belongs to.
        return False

    def _event(self, event: bytes) -> bytes:
        before = self.latest
        out = super()._event(event)
        if self.latest is not before:
            index, counts = _INDEX.search(event), super().usage()
            if counts is not None:
                self._counts[int(index.group(1)) if index else -1] = counts
        return out

    def usage(self) -> TokenCounts | None:
        """What the engine told of all together, else the sum of what it told of each so far."""
        if not self._counts or -1 in self._counts:
            return self._counts.get(-1)
        prompts = {index // self._answers: counts for index, counts in self._counts.items()}
        return TokenCounts(
            sum(counts.prompt for counts in prompts.values()),
            sum(counts.cached for counts in prompts.values()),
            sum(counts.completion for counts in self._counts.values()),
        )
