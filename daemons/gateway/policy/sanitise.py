"""A request body, read once: what it asks for, and the bytes that the engine gets."""

import codecs
import hmac
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.policy.bounds import PolicySettings
from daemons.gateway.policy.checks import Check, beyond, small, value_of
from daemons.gateway.policy.checks import echo as check_echo
from daemons.gateway.policy.checks import messages as check_messages
from daemons.gateway.policy.items import check_items
from daemons.gateway.policy.media import NO_MEDIA, Media, check_media, count_texts, may_hold_media
from daemons.gateway.policy.plain import ABSENT, Plain, PlainReader, StreamOptions, decode_stream_options
from daemons.gateway.policy.structure import check_structure
from daemons.gateway.policy.table import RULES, Action

Body = dict[str, msgspec.Raw]

_decode_body = msgspec.json.Decoder(Body).decode
_decode_flag = msgspec.json.Decoder(bool | None).decode
_decode_number = msgspec.json.Decoder(float | bool | None).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode
_utf8 = codecs.getincrementaldecoder("utf-8")
_PIECE: Final = 65536

_ALL_USAGE = msgspec.Raw(b'{"include_usage":true,"continuous_usage_stats":true}')


_CONVERSATIONS = (
    *("messages", "input", "system", "documents", "query", "queries", "items"),
    *("data_1", "data_2", "text_1", "text_2", "prompt", "instructions"),
)
_BEYOND_MESSAGES = frozenset(_CONVERSATIONS) - {"messages"}
_BYTES_OF_TOKEN: Final = 4
_TOKENS_OF_MEDIA: Final = 1024
"""An image costs from some hundred to some thousand tokens, depending on the model."""
_NOTHING = frozenset({b"null", b"false"})
_FALSE = msgspec.Raw(b"false")


def _refuse(name: str, raw: msgspec.Raw, _: PolicySettings) -> None:
    if bytes(raw) not in _NOTHING:
        reason = RULES[name].reason
        raise ApiError(ErrorCode.PARAMETER_NOT_ALLOWED, f"'{name}' must not be set: {reason}", param=name)


# What goes on to the engine, and how it is checked before; the rest is dropped. What is set in place of
# "stream_options" depends on them, and "messages" are counted with a look at what they hold.
_CHECKS: dict[str, Check | None] = {
    **{name: rule.check for name, rule in RULES.items() if rule.action in {Action.PASS, Action.BOUND}},
    **{name: _refuse for name, rule in RULES.items() if rule.action is Action.REFUSE},
    **dict.fromkeys(("stream_options", "messages")),
}
_FREE = frozenset(name for name, check in _CHECKS.items() if check is None)
_FREE_IF_SMALL = _FREE | {name for name, check in _CHECKS.items() if check is small}


class EngineFields:
    """What the engine's side of an API understands.

    Attributes:
        streams: whether it can answer as a stream.
        usage_in_stream: whether streams tell usage only when asked to.
        cache_salt: whether it takes a cache salt.
        store: whether it would keep answers unless told not to.
        metered: whether it works on the tokens, and counts them.
        lengths: parameters that say how long an answer may be; of several the first counts.
    """

    __slots__ = ("cache_salt", "lengths", "metered", "store", "streams", "usage_in_stream")

    def __init__(
        self,
        *,
        streams: bool = False,
        usage_in_stream: bool = False,
        cache_salt: bool = True,
        store: bool = False,
        metered: bool = True,
        lengths: tuple[str, ...] = (),
    ) -> None:
        self.streams = streams
        self.usage_in_stream = usage_in_stream
        self.cache_salt = cache_salt
        self.store = store
        self.metered = metered
        self.lengths = lengths


class Sanitised:
    """A request that may go to an engine.

    Attributes:
        model: the model it names.
        stream: whether it wants a stream.
        keep_final: it asked for usage at the end of the stream.
        keep_all: it asked for usage in every event.
        body: what the engine gets.
        prompt_tokens: the estimated size of the prompt.
        answer_tokens: tokens that the answers may have; None is as many as the model makes.
        answers: to each prompt of a stream that has several in all; 0 where there is but one.
    """

    __slots__ = (
        "answer_tokens",
        "answers",
        "body",
        "keep_all",
        "keep_final",
        "model",
        "prompt_tokens",
        "stream",
    )

    def __init__(
        self,
        model: str,
        body: bytes,
        *,
        stream: bool,
        keep_final: bool,
        keep_all: bool,
        prompt_tokens: int,
        answer_tokens: int | None,
        answers: int,
    ) -> None:
        self.model = model
        self.body = body
        self.stream = stream
        self.keep_final = keep_final
        self.keep_all = keep_all
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.answers = answers


def parse(raw: bytes) -> Body:
    """The parameters of a request, each as raw JSON.

    Raises:
        ApiError: the body is no JSON object.
    """
    try:
        return _decode_body(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        fault = f"is not a JSON object: {error}" if raw else "is empty; it must be a JSON object."
        raise ApiError(ErrorCode.INVALID_JSON, f"The request body {fault}") from None


def check_text(raw: bytes) -> None:
    """Refuse what is no UTF-8: values that nobody reads here would go on to the engine, which fails at them.

    Raises:
        ApiError: it is none.
    """
    decoder = _utf8()
    try:
        # Piece by piece: as a whole it would take up to four times its bytes.
        for at in range(0, len(raw), _PIECE):
            decoder.decode(raw[at : at + _PIECE])
        decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        raise ApiError(ErrorCode.INVALID_JSON, f"The request body is not UTF-8: {error.reason}.") from None


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
    if name not in body:
        return False
    try:
        return bool(_decode_flag(body[name]))
    except msgspec.MsgspecError:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"'{name}' must be true or false.", param=name) from None


class Policy:
    """What tenants may ask, and what the gateway sets in their place.

    Args:
        bounds: how much they may ask for.
        salt: makes the cache salt of a cache group; None leaves caches shared.
        media_hosts: hosts that every engine of a model may fetch media from.
    """

    def __init__(
        self,
        bounds: PolicySettings,
        salt: Callable[[str], bytes] | None,
        media_hosts: Callable[[str], Collection[str]],
    ) -> None:
        self._bounds = bounds
        self._plain = PlainReader(_FREE_IF_SMALL - _BEYOND_MESSAGES, bounds)
        self._salt = salt
        self._media_hosts = media_hosts

    def __call__(self, raw: bytes, cache_group: str, fields: EngineFields) -> Sanitised:
        """Read the request in `raw`.

        Raises:
            ApiError: the request is refused.
        """
        if not raw.isascii():
            check_text(raw)
        plain = self._plain(raw)
        if plain is not None and not fields.store:
            return self._pass(plain, raw, cache_group, fields)
        body = parse(raw)
        model = text_of(body, "model")
        size = len(raw)
        check_structure(body, size, self._bounds)
        # What fits into the bound as a whole has no parameter beyond it.
        changed = self._apply(body, _FREE_IF_SMALL if size <= self._bounds.value_bytes else _FREE)
        media = NO_MEDIA
        if not self._only_texts(body) and may_hold_media(raw):
            for name in _CONVERSATIONS:
                if name in body:
                    media += check_media(name, body[name], self._media_hosts(model))
        stream = fields.streams and flag_of(body, "stream")
        keep_final = keep_all = False
        if stream and fields.usage_in_stream:
            keep_final, keep_all = _kept_usage(body.get("stream_options", ABSENT))
            body["stream_options"] = _ALL_USAGE
            changed = True
        if fields.store:
            if "input" in body:
                check_items(body["input"], self._bounds)
            body["store"] = _FALSE
            changed = True
        if fields.cache_salt and self._salt is not None:
            body["cache_salt"] = msgspec.Raw(self._salt(cache_group))
            changed = True
        return Sanitised(
            model,
            _encode(body) if changed else raw,
            stream=stream,
            keep_final=keep_final,
            keep_all=keep_all,
            prompt_tokens=_prompt_tokens(size, media) if fields.metered else 0,
            answer_tokens=_answer_tokens(body, fields.lengths) if fields.streams else 0,
            answers=_answers(body) if stream else 0,
        )

    def _pass(self, plain: Plain, raw: bytes, cache_group: str, fields: EngineFields) -> Sanitised:
        """As `__call__`, of a request that was found to be plain."""
        stream = fields.streams and plain.stream is True
        changed = plain.cache_salt is not ABSENT
        keep_final = keep_all = False
        if stream and fields.usage_in_stream:
            keep_final, keep_all = _kept_usage(plain.stream_options)
            plain.stream_options = _ALL_USAGE
            changed = True
        if fields.cache_salt and self._salt is not None:
            plain.cache_salt = msgspec.Raw(self._salt(cache_group))
            changed = True
        else:
            plain.cache_salt = ABSENT
        answers = plain.n or 1
        return Sanitised(
            plain.model,
            # Encoded anew, it holds each name once: whichever of two an engine took, it is the one checked.
            _encode(plain) if changed else raw,
            stream=stream,
            keep_final=keep_final,
            keep_all=keep_all,
            prompt_tokens=len(raw) // _BYTES_OF_TOKEN if fields.metered else 0,
            answer_tokens=plain.answer_tokens(fields.lengths) if fields.streams else 0,
            answers=answers if stream and answers > 1 else 0,
        )

    def _apply(self, body: Body, free: Collection[str]) -> bool:
        """Hold `body` against the table, except for what is `free`; whether anything was dropped from it."""
        dropped = []
        for name in body:
            if name not in free:
                check = _CHECKS.get(name)
                if check is not None:
                    check(name, body[name], self._bounds)
                else:
                    dropped.append(name)
        for name in dropped:
            del body[name]
        if "echo" in body:
            check_echo(body, self._bounds)
        return bool(dropped)

    def _only_texts(self, body: Body) -> bool:
        """Whether `body` is a bearable number of messages that are texts, and no other conversation.

        Raises:
            ApiError: there are too many messages, whatever they are.
        """
        messages = body.get("messages")
        if messages is None:
            return False
        count = count_texts(messages)
        if count is None:
            check_messages("messages", messages, self._bounds)
            return False
        if count > self._bounds.messages:
            raise beyond("messages", f"{count} entries", self._bounds.messages)
        return _BEYOND_MESSAGES.isdisjoint(body)


def _prompt_tokens(size: int, media: Media) -> int:
    """About how many tokens a body of `size` bytes with `media` inside it is."""
    return (size - media.size) // _BYTES_OF_TOKEN + media.count * _TOKENS_OF_MEDIA


def cache_salts(secret: bytes) -> Callable[[str], bytes]:
    """Cache salts by group, as JSON strings: HMAC-SHA256 of its name, which nobody can guess."""
    known: dict[str, bytes] = {}

    def salt(group: str) -> bytes:
        found = known.get(group)
        if found is None:
            digest = hmac.new(secret, group.encode(), "sha256").hexdigest()
            found = known[group] = f'"{digest}"'.encode()
        return found

    return salt


def _answer_tokens(body: Body, lengths: tuple[str, ...]) -> int | None:
    for name in lengths:
        if name in body:
            most = _whole(body[name])
            if most is not None:
                return most * (_whole(body["n"]) or 1) if "n" in body else most
    return None


def _whole(raw: msgspec.Raw) -> int | None:
    number = _decode_number(raw)
    return None if number is None or isinstance(number, bool) else int(number)


def _answers(body: Body) -> int:
    """Answers to each prompt; 0 where there is one prompt and one answer."""
    if "n" not in body and "prompt" not in body:
        return 0
    n = value_of("n", body["n"]) if "n" in body else 1
    answers = int(n) if isinstance(n, float | int) and n >= 1 else 1
    several = answers > 1 or ("prompt" in body and bytes(memoryview(body["prompt"])[:1]) == b"[")
    return answers if several else 0


def _kept_usage(stream_options: msgspec.Raw) -> tuple[bool, bool]:
    """Whether the client wants usage at the end of its stream, and in every event."""
    if stream_options is ABSENT:
        return False, False
    try:
        options: StreamOptions | None = decode_stream_options(stream_options)
    except msgspec.MsgspecError as error:
        raise ApiError(
            ErrorCode.INVALID_REQUEST, f"'stream_options': {error}", param="stream_options"
        ) from None
    final = bool(options and options.include_usage)
    return final, final and bool(options and options.continuous_usage_stats)
