"""``usage`` objects."""

from typing import Any

from daemons.simulator.model.engine import Request


def usage_of(
    prompt_tokens: int, completion_tokens: int, details: dict[str, Any] | None = None
) -> dict[str, Any]:
    """``usage`` of an answer that is sent whole."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": details and {**details, "multimodal_tokens": None},
        "completion_tokens_details": None,
    }


def prompt_details(request: Request, created: int | None) -> dict[str, Any]:
    """``prompt_tokens_details``; shown with ``--enable-prompt-tokens-details``."""
    return {"cached_tokens": request.cached_tokens, "created_cache_tokens": created}
