"""Error bodies, as observed on vLLM 0.32."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web
from pydantic import ValidationError

BUSY = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)
BACKLOG = (
    "The engine has reached its prefill token backlog limit. "
    "Please try again later or on a different instance."
)
DRAINING = "cannot schedule new futures after shutdown"


class ApiError(Exception):
    """Ends a request with an error body.

    Attributes:
        status: HTTP status, also the body's ``code``.
        kind: the body's ``type``.
        param: the parameter at fault.
        native: for a validation error, which has the OpenAI form on every path.
    """

    def __init__(
        self, status: int, message: str, kind: str, param: str | None = None, *, native: bool = True
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.native = native


def bad_request(message: str, param: str | None = None, value: object = None) -> ApiError:
    """400 for a request that is well formed but cannot be served."""
    details = [f"parameter={param}"] if param else []
    if param and value is not None:
        details.append(f"value={value}")
    suffix = f" ({', '.join(details)})" if details else ""
    return ApiError(400, message + suffix, "BadRequestError", param)


def not_found_model(name: str, known: Sequence[str]) -> ApiError:
    """404 for a model that is not served."""
    text = f"The model `{name}` does not exist. Valid aliases: {', '.join(known)}."
    return ApiError(404, text, "NotFoundError", "model")


def busy(message: str = BUSY) -> ApiError:
    """503 for a queue limit."""
    return ApiError(503, message, "Service Unavailable")


def internal(message: str) -> ApiError:
    """500."""
    return ApiError(500, message, "InternalServerError")


def malformed(errors: Sequence[dict[str, Any]]) -> ApiError:
    """400 for a body that does not fit the request's model; `errors` as pydantic lists them."""
    lines = [repr(_describe(error)) for error in errors]
    plural = "" if len(errors) == 1 else "s"
    text = f"{len(errors)} validation error{plural}:\n" + "\n".join(f"  {line}" for line in lines)
    return ApiError(400, text, "Bad Request", _place(errors[0]["loc"]), native=False)


def from_validation(error: ValidationError) -> ApiError:
    """`malformed` for an error raised by pydantic."""
    return malformed([dict(item) for item in error.errors(include_url=False)])


def _describe(error: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "type": error["type"],
        "loc": _place(error["loc"]),
        "msg": error["msg"],
        "input": _shorten(error.get("input")),
    }
    if "ctx" in error:
        described["ctx"] = error["ctx"]
    return described


def _place(loc: Sequence[object]) -> str:
    return ".".join(["body", *map(str, loc)])


def _shorten(value: object) -> str:
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)


def body_of(error: ApiError) -> dict[str, Any]:
    """The error in OpenAI's form."""
    inner = {"message": error.message, "type": error.kind, "param": error.param, "code": error.status}
    return {"error": inner}


def event_of(error: ApiError) -> bytes:
    """The error as an event of a stream that has already begun."""
    return b"data: " + json.dumps(body_of(error)).encode() + b"\n\n"


def response(error: ApiError, *, anthropic: bool = False) -> web.Response:
    """The error as a response, in Anthropic's form on its paths."""
    body: dict[str, Any] = body_of(error)
    if anthropic and error.native:
        body = {"type": "error", "error": {"type": error.kind, "message": error.message}}
    return reply(body, status=error.status)


def reply(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """`value` as JSON without spaces and without a charset, as FastAPI writes it."""
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def loads(data: bytes) -> object:
    """`data` as JSON, by the standard library's parser: its messages are the ones vLLM shows.

    Raises:
        ValueError: it is none.
    """
    return json.loads(data)


def not_json(error: ValueError) -> ApiError:
    """400 for a body that is no JSON."""
    at = error.pos if isinstance(error, json.JSONDecodeError) else 0
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    item = {"type": "json_invalid", "loc": (at,), "msg": "JSON decode error", "input": {}}
    return malformed([{**item, "ctx": {"error": reason}}])


def not_an_object(value: object) -> dict[str, Any]:
    """The validation error for a body that is JSON but no object."""
    text = "Input should be a valid dictionary or object to extract fields from"
    return {"type": "model_attributes_type", "loc": (), "msg": text, "input": value}
