"""An engine's refusal of a request, told in our words.

Interpreted, as everything that is decoded: a compiled class does not keep what its annotations say.
"""

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode


class _EngineError(msgspec.Struct):
    message: str = ""
    param: str | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError


_MOST_OF_MESSAGE = 4096
_TOO_LONG = ("maximum context length", "maximum model length", "longer than the maximum")


def engine_refusal(status: int, body: bytes) -> ApiError:
    """An engine's refusal of the request itself, in our words and with its reason."""
    try:
        given = msgspec.json.decode(body, type=_EngineErrorBody).error
    except msgspec.MsgspecError:
        given = _EngineError()
    message = given.message[:_MOST_OF_MESSAGE] or f"The engine refuses the request (status {status})."
    if status == 404 and not given.message:
        return ApiError(ErrorCode.NOT_FOUND, "The engine of this model does not offer this path.")
    if status == 404:
        return ApiError(ErrorCode.MODEL_NOT_FOUND, message, param=given.param)
    code = ErrorCode.INVALID_REQUEST
    if any(words in message for words in _TOO_LONG):
        code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
    return ApiError(code, message, param=given.param, status=status if 400 <= status < 500 else 400)
