"""What an engine counted, read out of its ``usage`` object.

Never compiled: mypyc leaves of a field's type only a class, and msgspec would decode nothing.
"""

import msgspec


class TokenCounts(msgspec.Struct, frozen=True, gc=False):
    """Tokens of a request as the engine counted them."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt, those found in the prefix cache."""
    completion: int = 0


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


_decode_usage = msgspec.json.Decoder(_Usage).decode


def read_usage(raw: bytes) -> TokenCounts | None:
    """The counts in a ``usage`` object of any of the APIs; None when it is none.

    Anthropic counts cached tokens beside ``input_tokens``, the OpenAI APIs within the prompt's.
    """
    try:
        usage = _decode_usage(raw)
    except msgspec.MsgspecError:
        return None
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = (details.cached_tokens if details else None) or 0
    prompt = usage.prompt_tokens or usage.input_tokens or 0
    if usage.cache_read_input_tokens:
        cached = usage.cache_read_input_tokens
        prompt += cached
    return TokenCounts(prompt, cached, usage.completion_tokens or usage.output_tokens or 0)
