"""The first requests to a new engine: until they are answered it is not ready."""

import json
from typing import Any

import structlog

from daemons.engine.api import Answer, EngineApi

log = structlog.get_logger()

_PROMPT_TOKEN = 5
_LONG_PROMPT = 2048
_LONG_PROMPT_CPU = 256


class WarmUpFailed(Exception):
    """The engine answers, but no request of a kind it should serve."""


async def warm_up(api: EngineApi, model: str, max_model_len: int | None, on_cpu: bool, within: float) -> str:
    """One request for each kind of endpoint and one long prompt; returns what was answered, for the log.

    What an engine does not offer (chat for a model without a template, completions for an embedding model)
    it refuses with a 4xx, which is no failure as long as one kind works.

    Raises:
        WarmUpFailed: an endpoint failed, or none works.
        EngineUnreachable, EngineSilent: from `api`.
    """
    longest = _LONG_PROMPT_CPU if on_cpu else _LONG_PROMPT
    length = max(1, min(longest, (max_model_len or longest) - 2))
    short: dict[str, Any] = {"model": model, "max_tokens": 1, "temperature": 0}
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "completion": ("/v1/completions", short | {"prompt": "Hello"}),
        "chat": ("/v1/chat/completions", short | {"messages": [{"role": "user", "content": "Hello"}]}),
        "long prompt": ("/v1/completions", short | {"prompt": [_PROMPT_TOKEN] * length}),
    }
    served: list[str] = []
    refused: dict[str, str] = {}
    for kind, (path, body) in requests.items():
        answer = await api.post(path, body, within)
        if _take(kind, answer, refused):
            served.append(kind)
    if not served:
        answer = await api.post("/v1/embeddings", {"model": model, "input": "Hello"}, within)
        if _take("embedding", answer, refused):
            served.append("embedding")
    if not served:
        raise WarmUpFailed("; ".join(f"{kind}: {reason}" for kind, reason in refused.items()))
    for kind, reason in refused.items():
        log.info("the engine does not serve this", kind=kind, reason=reason)
    return ", ".join(served)


def _take(kind: str, answer: Answer, refused: dict[str, str]) -> bool:
    """Whether `answer` is one; a refusal goes to `refused`."""
    if answer.status == 200:
        return True
    if answer.status >= 500:
        raise WarmUpFailed(f"{kind}: HTTP {answer.status}: {_message(answer)}")
    refused[kind] = f"HTTP {answer.status}: {_message(answer)}"
    return False


def _message(answer: Answer) -> str:
    try:
        return str(json.loads(answer.body)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return answer.body[:300]
