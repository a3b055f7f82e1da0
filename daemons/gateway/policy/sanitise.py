"""A request body, read once: what it asks for, and the bytes that the engine gets."""

from dataclasses import dataclass

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode

Body = dict[str, msgspec.Raw]

_decode_body = msgspec.json.Decoder(Body).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode

_ALL_USAGE = msgspec.Raw(b'{"include_usage":true,"continuous_usage_stats":true}')


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


_decode_stream_options = msgspec.json.Decoder(_StreamOptions | None).decode


@dataclass(slots=True)
class Sanitised:
    """A request that may go to an engine.

    Attributes:
        model: the model it names.
        stream: whether it wants a stream.
        keep_final: it asked for usage at the end of the stream.
        keep_all: it asked for usage in every event.
        body: what the engine gets.
        prompt_tokens: the estimated size of the prompt.
    """

    model: str
    stream: bool
    keep_final: bool
    keep_all: bool
    body: bytes
    prompt_tokens: int


def parse(raw: bytes) -> Body:
    """The parameters of a request, each as raw JSON.

    Raises:
        ApiError: the body is no JSON object.
    """
    try:
        return _decode_body(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(ErrorCode.INVALID_JSON, f"The request body is not a JSON object: {error}") from None


def text_of(body: Body, name: str) -> str:
    """A parameter that must be a string.

    Raises:
        ApiError: it is missing or something else.
    """
    try:
        return _decode_text(body[name])
    except KeyError:
        raise ApiError(
            ErrorCode.INVALID_REQUEST, f"The parameter '{name}' is required.", param=name
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ApiError(ErrorCode.INVALID_REQUEST, f"'{name}' must be a string.", param=name) from None


def flag_of(body: Body, name: str) -> bool:
    """A parameter that must be true, false or null; False when it is not there.

    Raises:
        ApiError: it is something else.
    """
    value = body.get(name)
    if value is None:
        return False
    raw = bytes(value)
    if raw not in {b"true", b"false", b"null"}:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"'{name}' must be true or false.", param=name)
    return raw == b"true"


def sanitise(raw: bytes, *, usage_in_stream: bool) -> Sanitised:
    """Read the request in `raw`.

    Args:
        raw: the body as received.
        usage_in_stream: whether streams of this API tell usage only when asked to.

    Raises:
        ApiError: the request is refused.
    """
    body = parse(raw)
    stream = flag_of(body, "stream")
    keep_final = keep_all = False
    changed = False
    if stream and usage_in_stream:
        options = _stream_options(body)
        keep_final = bool(options and options.include_usage)
        keep_all = keep_final and bool(options and options.continuous_usage_stats)
        body["stream_options"] = _ALL_USAGE
        changed = True
    return Sanitised(
        model=text_of(body, "model"),
        stream=stream,
        keep_final=keep_final,
        keep_all=keep_all,
        body=_encode(body) if changed else raw,
        prompt_tokens=len(raw) // 4,
    )


def _stream_options(body: Body) -> _StreamOptions | None:
    given = body.get("stream_options")
    if given is None:
        return None
    try:
        options: _StreamOptions | None = _decode_stream_options(given)
    except msgspec.MsgspecError as error:
        raise ApiError(
            ErrorCode.INVALID_REQUEST, f"'stream_options': {error}", param="stream_options"
        ) from None
    return options
