"""Error bodies and error events in the form of each API."""

from collections.abc import Callable

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode, status_of

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

STREAM_MESSAGES = {
    ErrorCode.ENGINE_ERROR: "The engine failed while it was answering.",
    ErrorCode.ENGINE_LOST: "The connection to the engine was lost while it was answering.",
    ErrorCode.ENGINE_PROTOCOL_ERROR: "The engine sent an answer that cannot be understood.",
    ErrorCode.ENGINE_STALLED: "The engine fell silent while it was answering.",
    ErrorCode.ENGINE_TIMEOUT: "The engine did not begin to answer in time.",
    ErrorCode.ENGINE_UNREACHABLE: "No engine that serves this model could be reached.",
    ErrorCode.ENGINE_BUSY: "Every engine that serves this model is at its limit.",
    ErrorCode.TOTAL_TIMEOUT: "The answer took longer than this server allows.",
    ErrorCode.SHUTTING_DOWN: "The server is going down.",
}
"""What the reader is told of failures that arise after admission."""


def message_of(code: ErrorCode) -> str:
    """The sentence that goes with a failure after admission."""
    return STREAM_MESSAGES.get(code, "The request could not be completed.")


def _openai_type(status: int) -> str:
    return _OPENAI_TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")


def _anthropic_type(status: int) -> str:
    return _ANTHROPIC_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def openai_body(error: ApiError) -> bytes:
    """``{"error": {"message", "type", "param", "code"}}``."""
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": _openai_type(error.status),
                "param": error.param,
                "code": error.code,
            }
        }
    )


def anthropic_body(error: ApiError) -> bytes:
    """``{"type": "error", "error": {"type", "message"}}``, with the word and the parameter added."""
    return msgspec.json.encode(
        {
            "type": "error",
            "error": {
                "type": _anthropic_type(error.status),
                "message": error.message,
                "code": error.code,
                "param": error.param,
            },
        }
    )


def openai_event(code: ErrorCode) -> bytes:
    """The error event of chat completions and completions."""
    error = ApiError(code, message_of(code))
    return b"data: " + openai_body(error) + b"\n\n"


def responses_event(code: ErrorCode) -> bytes:
    """The error event of the responses API."""
    event = {"type": "error", "code": code, "message": message_of(code), "param": None}
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


def anthropic_event(code: ErrorCode) -> bytes:
    """The error event of Anthropic messages."""
    error = ApiError(code, message_of(code), status=status_of(code))
    return b"event: error\ndata: " + anthropic_body(error) + b"\n\n"


class Form(msgspec.Struct, frozen=True):
    """How an API tells of errors."""

    body: Callable[[ApiError], bytes]
    event: Callable[[ErrorCode], bytes]


OPENAI = Form(openai_body, openai_event)
RESPONSES = Form(openai_body, responses_event)
ANTHROPIC = Form(anthropic_body, anthropic_event)
