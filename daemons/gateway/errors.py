"""The closed vocabulary of ways in which a request can fail.

The same word stands in the body (``error.code``), the SSE error event, the log line and the metric label.
"""

from collections.abc import Mapping
from enum import StrEnum


class ErrorCode(StrEnum):
    """Every way a request can end other than well."""

    INVALID_HTTP = "invalid_http"
    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"
    PARAMETER_NOT_ALLOWED = "parameter_not_allowed"
    PARAMETER_OUT_OF_BOUNDS = "parameter_out_of_bounds"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_API_KEY = "invalid_api_key"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    NETWORK_NOT_ALLOWED = "network_not_allowed"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LARGE = "body_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    BUDGET_EXCEEDED = "budget_exceeded"
    CLIENT_GONE = "client_gone"
    CLIENT_STALLED = "client_stalled"
    INTERNAL_ERROR = "internal_error"
    ENGINE_UNREACHABLE = "engine_unreachable"
    ENGINE_ERROR = "engine_error"
    ENGINE_PROTOCOL_ERROR = "engine_protocol_error"
    ENGINE_LOST = "engine_lost"
    ENGINE_TIMEOUT = "engine_timeout"
    ENGINE_STALLED = "engine_stalled"
    ENGINE_BUSY = "engine_busy"
    TOTAL_TIMEOUT = "total_timeout"
    NO_ENGINE = "no_engine"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    SHUTTING_DOWN = "shutting_down"


_STATUS = {
    ErrorCode.INVALID_API_KEY: 401,
    ErrorCode.MODEL_NOT_ALLOWED: 403,
    ErrorCode.NETWORK_NOT_ALLOWED: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.REQUEST_TIMEOUT: 408,
    ErrorCode.BODY_TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: 415,
    ErrorCode.RATE_LIMIT_EXCEEDED: 429,
    ErrorCode.BUDGET_EXCEEDED: 429,
    ErrorCode.HEADERS_TOO_LARGE: 431,
    # Nobody reads these two; 499 is nginx's habit and what logs are searched for.
    ErrorCode.CLIENT_GONE: 499,
    ErrorCode.CLIENT_STALLED: 499,
    ErrorCode.INTERNAL_ERROR: 500,
    ErrorCode.ENGINE_UNREACHABLE: 502,
    ErrorCode.ENGINE_ERROR: 502,
    ErrorCode.ENGINE_PROTOCOL_ERROR: 502,
    ErrorCode.ENGINE_LOST: 502,
    ErrorCode.ENGINE_TIMEOUT: 504,
    ErrorCode.ENGINE_STALLED: 504,
    ErrorCode.TOTAL_TIMEOUT: 504,
    ErrorCode.ENGINE_BUSY: 503,
    ErrorCode.NO_ENGINE: 503,
    ErrorCode.QUEUE_FULL: 503,
    ErrorCode.QUEUE_TIMEOUT: 503,
    ErrorCode.SHUTTING_DOWN: 503,
}


def status_of(code: ErrorCode) -> int:
    """The HTTP status that goes with `code`."""
    return _STATUS.get(code, 400)


class ApiError(Exception):
    """Ends a request before its answer began.

    Attributes:
        code: the word of the vocabulary.
        message: one or two sentences for the caller; never holds a secret or an internal address.
        param: the request parameter at fault.
        headers: further response headers, for example ``Retry-After``.
        status: HTTP status, by default the one that goes with `code`.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})
        self.status = status or status_of(code)


class StrangerError(ApiError):
    """Ends a request before it is known who asks."""
