"""``usage`` objects."""

from typing import Any


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """``usage`` of an answer that is sent whole."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
