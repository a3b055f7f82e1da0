"""An engine's refusal of a request, told in our words.

Interpreted, as everything that is decoded: a compiled class does not keep what its annotations say.
"""

import re

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode


class _EngineError(msgspec.Struct):
    message: str = ""
    param: str | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError


_MOST_OF_MESSAGE = 4096
_TOO_LONG = ("maximum context length", "maximum model length", "longer than the maximum")

# What vLLM's models find wrong is a list: a count, and a line for each fault with the value that was given.
_COUNT = re.compile(r"\d+ validation errors?:")
_FAULT = re.compile(
    r"""  \{'type': '(\w+)', 'loc': '([^'\\]*)', 'msg': (?:'([^'\\]*)'|"([^"\\]*)"), 'input': """
)
_MORE = re.compile(r"  \.\.\.and \d+ more errors?")


def engine_refusal(status: int, body: bytes) -> ApiError:
    """An engine's refusal of the request itself, in our words and with its reason."""
    try:
        given = msgspec.json.decode(body, type=_EngineErrorBody).error
    except msgspec.MsgspecError:
        given = _EngineError()
    message = _in_sentences(given.message)[:_MOST_OF_MESSAGE]
    message = message or f"The engine refuses the request (status {status})."
    param = _name(given.param or "") or None
    if status == 404 and not given.message:
        return ApiError(ErrorCode.NOT_FOUND, "The engine of this model does not offer this path.")
    if status == 404:
        return ApiError(ErrorCode.MODEL_NOT_FOUND, message, param=param)
    code = ErrorCode.INVALID_REQUEST
    if any(words in message for words in _TOO_LONG):
        code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
    return ApiError(code, message, param=param, status=status if 400 <= status < 500 else 400)


def _in_sentences(message: str) -> str:
    """What an engine's models find wrong, a sentence for each fault; every other message as it is."""
    head, *lines = message.split("\n")
    if _COUNT.fullmatch(head) is None:
        return message
    sentences = []
    for line in lines:
        fault = _FAULT.match(line)
        if fault is not None:
            sentences.append(_sentence(*fault.groups(default="")))
        elif _MORE.fullmatch(line) is None:
            return message
    return " ".join(dict.fromkeys(sentences)) or message


def _sentence(kind: str, place: str, said: str, quoting: str) -> str:
    name = _name(place)
    if kind == "missing" and name:
        return f"'{name}' is missing."
    text = (said or quoting).removeprefix("Value error, ").rstrip(".")
    return f"'{name}': {text}." if name else f"{text}."


def _name(place: str) -> str:
    """The parameter that an engine means by `place`; empty for the body as a whole."""
    return "" if place == "body" else place.removeprefix("body.")
