"""Server-sent events between an engine and a client: usage is read and removed, failure and end are noticed.

A filter takes the decoded body in pieces of any size and gives back what the client gets. It works on whole
events; what it does not remove passes byte for byte. An answer that is not `complete` when the body ends was
cut short.
"""

import re
from typing import Final

from daemons.gateway.relay.http1 import ProtocolError
from daemons.gateway.relay.usage import TokenCounts, read_usage

MAX_EVENT: Final = 16 * 1024 * 1024
"""Bytes of one event; logprobs over a large vocabulary come near a megabyte."""

# Quotes inside JSON strings are escaped, so that these bytes can only be a key of the event itself.
_USAGE_KEY: Final = b',"usage":{'
USAGE_AFTER_CHOICES: Final = b'}],"usage":{'
_ANY_USAGE_KEY: Final = b'"usage":{'
# A JSON object with no more than one object inside another.
_OBJECT: Final = re.compile(rb"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
_EMPTY_CHOICES: Final = b'"choices":[]'
_OPEN: Final = ord("{")
_BLANK: Final = b"\n\n"


def usage_in(data: bytes, key: bytes = _ANY_USAGE_KEY) -> TokenCounts | None:
    """The counts in the last ``usage`` object of `data`, found by `key`."""
    raw = _part_usage(data, key)[1]
    return read_usage(raw) if raw else None


def _part_usage(data: bytes, key: bytes) -> tuple[bytes, bytes, bytes]:
    """What stands before the last ``usage`` object of `data`, the object, and what follows it.

    The object is empty where there is none, or not all of it.
    """
    before, found, after = data.rpartition(key)
    if not found:
        return data, b"", b""
    flat, end, rest = after.partition(b"}")
    if end and _OPEN not in flat:
        return before, b"{" + flat + b"}", rest
    match = _OBJECT.match(data, len(before) + len(key) - 1)
    if match is None:
        return data, b"", b""
    return before, match.group(), data[match.end() :]


class EventFilter:
    """Splits a stream into events; subclasses say what becomes of each.

    Attributes:
        events: events so far, comments left out.
        complete: the engine ended its answer as the API prescribes.
        error: the engine's own error event, as received.
    """

    __slots__ = ("_rest", "complete", "error", "events")

    def __init__(self) -> None:
        self._rest = b""
        self.events = 0
        self.complete = False
        self.error: bytes | None = None

    def feed(self, data: bytes) -> bytes:
        """What the client gets of `data`.

        Raises:
            ProtocolError: an event is larger than `MAX_EVENT`.
        """
        events = (self._rest + data).split(_BLANK) if self._rest else data.split(_BLANK)
        self._rest = rest = events.pop()
        if len(rest) > MAX_EVENT:
            raise ProtocolError("oversized event")
        return self._event(events[0]) if len(events) == 1 else b"".join([self._event(e) for e in events])

    def _event(self, event: bytes) -> bytes:
        """What the client gets of an event, which is given without its blank line."""
        raise NotImplementedError

    def usage(self) -> TokenCounts | None:
        """The latest counts the engine gave."""
        raise NotImplementedError


class OpenAIFilter(EventFilter):
    """Chat completions and completions of vLLM, asked for usage in every event.

    Args:
        keep_final: the client asked for ``include_usage``, and gets the last, choiceless event.
        keep_all: the client also asked for ``continuous_usage_stats``.

    Attributes:
        latest: what last told usage, with whatever stood around it.
    """

    __slots__ = ("_keep_all", "_keep_final", "latest")

    def __init__(self, *, keep_final: bool, keep_all: bool) -> None:
        super().__init__()
        self._keep_final = keep_final
        self._keep_all = keep_all
        self.latest = b""

    @property
    def strips(self) -> bool:
        """Whether each event loses its usage, and whole ones begin where the next piece does."""
        return not self._keep_all and not self._rest

    def _event(self, event: bytes) -> bytes:
        before, _, usage = event.rpartition(USAGE_AFTER_CHOICES)
        if before and usage[-2:] == b"}}" and _OPEN not in usage:
            # Choices and plain numbers, as most events end.
            self.events += 1
            self.latest = event
            return event + _BLANK if self._keep_all else before + b"}]}\n\n"
        if event.startswith(b"data: [DONE]"):
            # vLLM says it after an error too; the client must not take that for an end.
            self.complete = self.error is None
            return event + _BLANK if self.complete else b""
        if event.startswith(b'data: {"error"'):
            self.error = event
            return b""
        before, usage, after = _part_usage(event, _USAGE_KEY)
        if usage:
            self.events += 1
            self.latest = event
            if _EMPTY_CHOICES in before:
                return event + _BLANK if self._keep_final else b""
            return event + _BLANK if self._keep_all else before + after + _BLANK
        if not event.startswith(b":"):
            self.events += 1
        return event + _BLANK

    def usage(self) -> TokenCounts | None:
        """The latest counts the engine gave."""
        return usage_in(self.latest, _USAGE_KEY)


class NamedFilter(EventFilter):
    """APIs with named events and no ``[DONE]``: responses and Anthropic messages.

    Args:
        ends: names of the events that end an answer.
        content: start of the names of events that carry a piece of the answer.
        counted: names of the events that tell usage; others may repeat what the client sent under that name.
    """

    __slots__ = ("_content", "_counted", "_ends", "_pieces", "_usage")

    def __init__(
        self, *, ends: frozenset[bytes], content: tuple[bytes, ...], counted: frozenset[bytes]
    ) -> None:
        super().__init__()
        self._ends = ends
        self._content = content
        self._counted = counted
        self._pieces = 0
        self._usage = b""

    def _event(self, event: bytes) -> bytes:
        name = event[7:].partition(b"\n")[0].strip() if event.startswith(b"event: ") else b""
        if name == b"error" or event.startswith((b'data: {"error"', b'data: {"type":"error"')):
            self.error = event
            return b""
        if not event.startswith(b":"):
            self.events += 1
        if name.startswith(self._content):
            self._pieces += 1
        elif name in self._counted:
            self._usage = _part_usage(event, _ANY_USAGE_KEY)[1] or self._usage
        if name in self._ends:
            self.complete = self.error is None
        return event + _BLANK

    def usage(self) -> TokenCounts | None:
        """The latest counts the engine gave; for an answer cut short, one token for every piece of it."""
        latest = read_usage(self._usage) if self._usage else None
        if self.complete:
            return latest
        if latest is None:
            return TokenCounts(completion=self._pieces) if self._pieces else None
        return TokenCounts(latest.prompt, latest.cached, max(latest.completion, self._pieces))


def responses_filter() -> NamedFilter:
    """A filter for ``/v1/responses``, whose first events repeat the request with its tools' schemas."""
    ends = frozenset({b"response.completed", b"response.incomplete", b"response.failed"})
    return NamedFilter(
        ends=ends,
        counted=ends,
        content=(
            b"response.output_text.delta",
            b"response.reasoning_text.delta",
            b"response.function_call_arguments.delta",
        ),
    )


def messages_filter() -> NamedFilter:
    """A filter for ``/v1/messages``."""
    return NamedFilter(
        ends=frozenset({b"message_stop"}),
        content=(b"content_block_delta",),
        counted=frozenset({b"message_start", b"message_delta"}),
    )


class UsageScan:
    """Finds the last ``usage`` object of a JSON body that passes by in pieces."""

    __slots__ = ("_raw", "_tail")

    _OVERLAP = 1024

    def __init__(self) -> None:
        self._tail = b""
        self._raw = b""

    def feed(self, data: bytes) -> None:
        """Look at the next piece."""
        window = self._tail + data
        self._raw = _part_usage(window, _ANY_USAGE_KEY)[1] or self._raw
        self._tail = window[-self._OVERLAP :]

    def usage(self) -> TokenCounts | None:
        """The counts found."""
        return read_usage(self._raw) if self._raw else None
