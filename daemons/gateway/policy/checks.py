"""Checks of parameters against their bounds; each raises `ApiError` naming the parameter and the bound."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.policy.bounds import PolicySettings

Check = Callable[[str, msgspec.Raw, PolicySettings], None]

_decode = msgspec.json.Decoder().decode
_decode_number = msgspec.json.Decoder(float | bool | None).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_TOKENS = re.compile(rb"\[\s*[0-9]")
_OFF = frozenset({b"null", b"false"})
_REGEXES = frozenset({"regex", "pattern", "whitespace_pattern", "patternProperties"})
# A bracket of a group; what is escaped or stands in a class of characters is none.
_GROUPS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*+(?:\]|\\?\Z)|([()])", re.DOTALL)
# Arguments by which a tokenizer would be told what else to do, or the server's own be replaced.
_NOT_THE_TEMPLATES = frozenset(
    {
        "chat_template",
        "conversation",
        "max_length",
        "messages",
        "model_config",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def beyond(name: str, what: str, bound: int) -> ApiError:
    """The refusal of a parameter over its bound."""
    return ApiError(
        ErrorCode.PARAMETER_OUT_OF_BOUNDS, f"'{name}' has {what}; at most {bound} are taken here.", param=name
    )


def _wrong(name: str, expected: str) -> ApiError:
    return ApiError(ErrorCode.INVALID_REQUEST, f"'{name}' must be {expected}.", param=name)


def value_of(name: str, raw: msgspec.Raw) -> Any:
    """The parameter as Python objects.

    Raises:
        ApiError: it is not valid JSON after all.
    """
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _wrong(name, "valid JSON") from None


def small(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
    """Anything of bearable size."""
    size = len(memoryview(raw))
    if size > bounds.value_bytes:
        raise beyond(name, f"{size} bytes", bounds.value_bytes)


def number(bound_name: str, *, least: int = 0) -> Check:
    """A number from `least` to a bound; booleans and null pass."""

    def check(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
        try:
            value = _decode_number(raw)
        except msgspec.MsgspecError:
            raise _wrong(name, "a number") from None
        if value is None or isinstance(value, bool):
            return
        bound: int = getattr(bounds, bound_name)
        if not least <= value <= bound:
            raise ApiError(
                ErrorCode.PARAMETER_OUT_OF_BOUNDS,
                # Digits enough for every number that anybody means: a whole one is told whole.
                f"'{name}' is {value:.15g}; it must be from {least} to {bound}.",
                param=name,
            )

    return check


def entries(bound_name: str) -> Check:
    """A list or an object of at most so many entries; a single value and null pass."""

    def check(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
        bound: int = getattr(bounds, bound_name)
        first = bytes(memoryview(raw)[:1])
        if first == b"[":
            try:
                count = len(_decode_list(raw))
            except (msgspec.MsgspecError, RecursionError):
                raise _wrong(name, "valid JSON") from None
        elif first == b"{":
            count = len(value_of(name, raw))
        else:
            return
        if count > bound:
            raise beyond(name, f"{count} entries", bound)

    return check


_count_tokens = entries("token_lists")
_count_stops = entries("stop")


def token_list(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
    """Tokens or words that the model should use or avoid: how many, and how long together."""
    small(name, raw, bounds)
    _count_tokens(name, raw, bounds)


_count_messages = entries("messages")
_prompt_logprobs = number("prompt_logprobs")


def messages(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
    """A list of at most so many messages."""
    if bytes(memoryview(raw)[:1]) != b"[":
        raise _wrong(name, "a list of messages")
    _count_messages(name, raw, bounds)


def prompts(bound_name: str) -> Check:
    """A text, a list of texts, a list of tokens, or a list of such lists; what is counted is prompts."""
    count = entries(bound_name)

    def check(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
        if _TOKENS.match(raw) is None:
            count(name, raw, bounds)

    return check


def stop(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
    """Stop strings or tokens: how many, and how long together."""
    if len(memoryview(raw)) > bounds.stop_bytes:
        raise beyond(name, f"{len(memoryview(raw))} bytes", bounds.stop_bytes)
    _count_stops(name, raw, bounds)


def schema(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
    """A structure that an answer must have: its size, its nesting, and the regular expressions in it."""
    _structure(name, raw, bounds)


def structured_outputs(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
    """As `schema`; a structure may also be given as a text, which an engine decodes once more."""
    given = _structure(name, raw, bounds)
    for key in ("json", "structural_tag"):
        text = given.get(key) if isinstance(given, dict) else None
        if isinstance(text, str):
            _structure(f"{name}.{key}", msgspec.Raw(text.encode()), bounds)


def _structure(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> Any:
    size = len(memoryview(raw))
    if size > bounds.schema_bytes:
        raise beyond(name, f"{size} bytes", bounds.schema_bytes)
    given = value_of(name, raw)
    _nesting(name, given, bounds)
    return given


def _nesting(name: str, given: Any, bounds: PolicySettings) -> None:
    level = [given]
    depth = 0
    while level:
        depth += 1
        if depth > bounds.schema_depth:
            raise beyond(name, "too many levels", bounds.schema_depth)
        level = [child for node in level for child in _children(name, node, bounds)]


def _children(name: str, node: Any, bounds: PolicySettings) -> list[Any]:
    if isinstance(node, list):
        return node
    if not isinstance(node, dict):
        return []
    for key in _REGEXES & node.keys():
        value = node[key]
        # The keys of "patternProperties" are such expressions, too.
        for pattern in value if isinstance(value, dict) and key == "patternProperties" else (value,):
            if isinstance(pattern, str):
                _regex(f"{name}.{key}", pattern, bounds)
    return list(node.values())


def _regex(name: str, pattern: str, bounds: PolicySettings) -> None:
    size = len(pattern.encode())
    if size > bounds.regex_bytes:
        raise beyond(name, f"{size} bytes", bounds.regex_bytes)
    depth = 0
    for bracket in _GROUPS.findall(pattern):
        # One that closes nothing takes nothing off the depth of those behind it.
        depth = depth + 1 if bracket == "(" else max(0, depth - (bracket == ")"))
        if depth > bounds.schema_depth:
            raise beyond(name, "too many groups within each other", bounds.schema_depth)


def echo(body: Mapping[str, msgspec.Raw], bounds: PolicySettings) -> None:
    """A repeated prompt has the log probabilities of its answer, which the prompt's bound holds for."""
    if bytes(body.get("echo", b"null")) in _OFF or bytes(body.get("prompt_logprobs", b"null")) != b"null":
        return
    for name in ("logprobs", "top_logprobs"):
        if name in body:
            _prompt_logprobs(name, body[name], bounds)


def tools(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
    """Tools: how many, their schemas, and none that lets the engine reach out."""
    size = len(memoryview(raw))
    if size > bounds.tools_bytes:
        raise beyond(name, f"{size} bytes", bounds.tools_bytes)
    given = value_of(name, raw)
    _nesting(name, given, bounds)
    tools = _flat(given)
    if len(tools) > bounds.tools:
        raise beyond(name, f"{len(tools)} entries", bounds.tools)
    for tool in tools:
        if isinstance(tool, dict) and tool.keys() & {"server_url", "connector_id"}:
            raise ApiError(
                ErrorCode.PARAMETER_NOT_ALLOWED,
                f"'{name}' must not name servers; this server calls none.",
                param=name,
            )


def _flat(given: Any) -> list[Any]:
    """The tools of a list, and those within the namespaces among them."""
    tools = list(given) if isinstance(given, list) else []
    for tool in tools:
        if isinstance(tool, dict) and isinstance(tool.get("tools"), list):
            tools += tool["tools"]
    return tools


def template_kwargs(name: str, raw: msgspec.Raw, bounds: PolicySettings) -> None:
    """Arguments of the chat template, of which none may be a template."""
    size = len(memoryview(raw))
    if size > bounds.template_kwargs_bytes:
        raise beyond(name, f"{size} bytes", bounds.template_kwargs_bytes)
    value = value_of(name, raw)
    if isinstance(value, dict) and value.keys() & _NOT_THE_TEMPLATES:
        raise ApiError(
            ErrorCode.PARAMETER_NOT_ALLOWED,
            f"'{name}' must not name a template or replace what the server passes to it.",
            param=name,
        )
