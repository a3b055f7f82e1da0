"""What of an OpenAI-style answer a load test needs, decoded with types."""

import msgspec


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Token counts as the server states them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens served from a prefix cache, where the server says so."""
        details = self.prompt_tokens_details
        return details.cached_tokens or 0 if details is not None else 0


class Answer(msgspec.Struct):
    """A streamed event, or a whole answer."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw | None = None

    @property
    def has_token(self) -> bool:
        """Whether a user would see something new in it."""
        for choice in self.choices:
            delta = choice.delta
            if choice.text or (
                delta is not None
                and (delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)
            ):
                return True
        return False

    @property
    def failed(self) -> bool:
        """Whether it is an error in place of an answer."""
        return self.error is not None and self.error != b"null"


class _Error(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Error | str | None = None
    detail: str | None = None
    message: str | None = None


_REASON_CHARS = 300
_decode = msgspec.json.Decoder(Answer).decode


def decode_answer(data: bytes) -> Answer | None:
    """`data` as an answer; None when it is not one."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def reason_in(body: bytes) -> str:
    """What an error's body says, in one short line: its message where it has the API's form."""
    try:
        refusal = msgspec.json.decode(body, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        refusal = _Refusal()
    error = refusal.error.message if isinstance(refusal.error, _Error) else refusal.error
    text = error or refusal.message or refusal.detail or body[: 4 * _REASON_CHARS].decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_REASON_CHARS]
