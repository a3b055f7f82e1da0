"""The most common request, read in one pass: a conversation of texts, and parameters that need no look.

Interpreted, as everything that is decoded: a compiled class does not keep what its annotations say.
"""

from typing import cast

import msgspec

from daemons.gateway.policy.bounds import PolicySettings
from daemons.gateway.policy.media import Text

ABSENT = msgspec.Raw()


class StreamOptions(msgspec.Struct):
    """What of usage is told in a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


decode_stream_options = msgspec.json.Decoder(StreamOptions | None).decode


class Plain(msgspec.Struct, omit_defaults=True):
    """Parameters of such a request, as they go on to the engine; what is absent or null is left out.

    Attributes:
        model: the model it names.
        messages: the conversation.
        stream: whether it wants a stream.
        max_tokens: tokens that an answer may have.
        max_completion_tokens: the newer name of the same.
        n: answers.
        stream_options: what of usage is told in a stream.
        cache_salt: for the gateway to set.
    """

    model: str
    messages: list[Text]
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stream_options: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT

    def answer_tokens(self, lengths: tuple[str, ...]) -> int | None:
        """Tokens that the answers may have by the first of `lengths`; None is as many as the model makes."""
        most = self.max_completion_tokens if "max_completion_tokens" in lengths else None
        if most is None and "max_tokens" in lengths:
            most = self.max_tokens
        return most if most is None or self.n is None else most * self.n

    def fits(self, bounds: PolicySettings) -> bool:
        """Whether it is within `bounds`."""
        most = bounds.max_tokens
        return (
            len(self.messages) <= bounds.messages
            and (self.max_tokens is None or 0 <= self.max_tokens <= most)
            and (self.max_completion_tokens is None or 0 <= self.max_completion_tokens <= most)
            and (self.n is None or 1 <= self.n <= bounds.n)
        )


class PlainReader:
    """Recognises plain requests.

    Args:
        free: parameters that pass as they are.
        bounds: how much a request may ask for.
    """

    def __init__(self, free: frozenset[str], bounds: PolicySettings) -> None:
        others = [(name, msgspec.Raw, ABSENT) for name in sorted(free.difference(Plain.__struct_fields__))]
        model = msgspec.defstruct(
            "PlainWithAll", others, bases=(Plain,), forbid_unknown_fields=True, omit_defaults=True
        )
        self._decode = msgspec.json.Decoder(cast("type[Plain]", model)).decode
        self._bounds = bounds
        # Below this nothing can have too many entries or bytes.
        self._most = min(bounds.value_bytes, 2 * bounds.entries)

    def __call__(self, raw: bytes) -> Plain | None:
        """The request in `raw` if it is plain and within bounds; None for every other, right or wrong."""
        if len(raw) > self._most:
            return None
        try:
            plain = self._decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return plain if plain.fits(self._bounds) else None
