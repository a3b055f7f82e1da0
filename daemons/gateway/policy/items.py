"""Items of a response's input, held against their shape before an engine does so.

vLLM 0.32 tries each item as some sixty types and reports every misfit: a thousand items of ``{}``, three
kilobytes, kept its API server busy for seconds and took 800 MB (observed). Others cost little.
"""

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.policy.bounds import PolicySettings

_ROLES = frozenset({"user", "assistant", "system", "developer"})
_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": ("summary",),
}
_TEXTS = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})
_PARTS = _TEXTS | {"refusal", "input_image", "input_file", "input_audio"}
_STATES = frozenset({None, "in_progress", "completed", "incomplete"})
_NOTES = 32
"""Annotations or log probabilities of a part that are taken back."""


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    detail: str | None = None
    annotations: list[msgspec.Raw] | None = None
    logprobs: list[msgspec.Raw] | None = None


class _Item(msgspec.Struct):
    type: str | None = "message"
    id: str | None = None
    status: str | None = None
    role: str | None = None
    content: str | list[_Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[_Part] | None = None
    summary: list[_Part] | None = None


_decode = msgspec.json.Decoder(str | list[_Item]).decode


def check_items(raw: msgspec.Raw, bounds: PolicySettings) -> None:
    """Refuse an ``input`` that is neither a text nor a list of items of the known shapes.

    Raises:
        ApiError: it is not; the place is named.
    """
    try:
        items = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(f"is malformed: {error}") from None
    if isinstance(items, str):
        return
    if len(items) > bounds.items:
        raise ApiError(
            ErrorCode.PARAMETER_OUT_OF_BOUNDS,
            f"'input' has {len(items)} items; at most {bounds.items} are taken here.",
            param="input",
        )
    for number, item in enumerate(items):
        fault = _fault_of(item)
        if fault:
            raise _wrong(f"[{number}] {fault}")


def _wrong(text: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, f"'input' {text}", param="input")


def _fault_of(item: _Item) -> str:
    kind = item.type or "message"
    needed = _NEEDED.get(kind)
    if needed is None:
        return f"is of type {kind[:64]!r}; known are {', '.join(_NEEDED)}"
    missing = [name for name in needed if getattr(item, name) is None]
    if missing:
        return f"lacks {missing[0]!r}"
    if kind == "message" and item.role not in _ROLES:
        return f"has a 'role' other than {', '.join(sorted(_ROLES))}"
    if item.status not in _STATES:
        return "has an unknown 'status'"
    parts = [*_list(item.content), *_list(item.output), *_list(item.summary)]
    return next(filter(None, map(_fault_of_part, parts)), "")


def _list(value: str | list[_Part] | None) -> list[_Part]:
    return value if isinstance(value, list) else []


def _fault_of_part(part: _Part) -> str:
    if part.type not in _PARTS:
        return f"has a part of the unknown type {part.type[:64]!r}"
    if (part.type in _TEXTS and part.text is None) or (part.type == "refusal" and part.refusal is None):
        return f"has a part of type {part.type!r} without its text"
    if len(part.annotations or ()) > _NOTES or len(part.logprobs or ()) > _NOTES:
        return f"has a part with more than {_NOTES} annotations or logprobs"
    return ""
