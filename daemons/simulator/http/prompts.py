"""From a request body to prompt tokens and sampling parameters, with vLLM's checks and their messages."""

from collections.abc import Callable, Sequence
from typing import Any

from daemons.simulator.http.errors import bad_request
from daemons.simulator.http.requests import Generation
from daemons.simulator.model.output import Sampling
from daemons.simulator.model.text import encode

MAX_N = 16384
MAX_LOGPROBS = 20
_CHARACTERS_PER_TOKEN = 6


def render_chat(messages: Sequence[dict[str, Any]]) -> str:
    """The prompt of a conversation, by a template as small models have it.

    Raises:
        ApiError: there is no message.
    """
    if not messages:
        raise bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    turns = [f"<|{message.get('role')}|>\n{text_of(message.get('content'))}\n" for message in messages]
    return "".join(turns) + "<|assistant|>\n"


def text_of(content: object) -> str:
    """The text of a message's content: a string, or parts of which the textual ones count."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def encode_prompt(text: str, max_model_len: int) -> list[int]:
    """The tokens of a prompt that leaves room in the context.

    Raises:
        ApiError: it does not.
    """
    bound = max_model_len * _CHARACTERS_PER_TOKEN
    if len(text) > bound:
        raise bad_request(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
            f"{len(text)} characters (more than {bound} characters, which is the upper bound for "
            f"{max_model_len} input tokens). Please reduce the length of the input prompt.",
            "input_text",
            len(text),
        )
    tokens = encode(text)
    if len(tokens) > max_model_len:
        raise _too_long(f"at least {max_model_len + 1}", max_model_len + 1, max_model_len)
    return tokens


def check_tokens(tokens: list[int], max_model_len: int) -> list[int]:
    """`tokens` given as ids, if they leave room in the context.

    Raises:
        ApiError: they do not.
    """
    if len(tokens) > max_model_len:
        raise _too_long(str(len(tokens)), len(tokens), max_model_len)
    return tokens


def _too_long(count: str, value: int, max_model_len: int) -> Exception:
    return bad_request(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
        f"{count} input tokens, which exceeds this limit even without any output tokens. "
        "Please reduce the length of the input prompt.",
        "input_tokens",
        value,
    )


def bound_output(asked: int | None, param: str, prompt_length: int, max_model_len: int) -> int:
    """How many tokens may be generated.

    Raises:
        ApiError: more than the context, or less than one.
    """
    if asked is not None and asked > max_model_len:
        raise bad_request(
            f"{param}={asked} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            param,
            asked,
        )
    room = max_model_len - prompt_length
    granted = room if asked is None else min(asked, room)
    if granted < 1:
        raise bad_request(f"max_tokens must be at least 1, got {granted}.", "max_tokens", granted)
    return granted


def sampling_of(body: Generation, max_tokens: int) -> Sampling:
    """The sampling parameters of `body`.

    Raises:
        ApiError: the first that is out of its range.
    """
    _check_ranges(body)
    if body.min_tokens > max_tokens:
        raise bad_request(
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {body.min_tokens}."
        )
    if any(not stop for stop in body.stops):
        raise bad_request("stop cannot contain an empty string.")
    if body.n is not None and body.n > 1 and body.temperature == 0:
        raise bad_request(f"n must be 1 when using greedy sampling, got {body.n}.")
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        stop=body.stops,
        include_stop_str_in_output=body.include_stop_str_in_output,
    )


_Check = tuple[str, Callable[[float], bool], str, bool]
_RANGES: tuple[_Check, ...] = (
    ("n", lambda value: value >= 1, "n must be at least 1, got {}.", False),
    ("presence_penalty", lambda v: -2 <= v <= 2, "presence_penalty must be in [-2, 2], got {}.", False),
    ("frequency_penalty", lambda v: -2 <= v <= 2, "frequency_penalty must be in [-2, 2], got {}.", False),
    ("temperature", lambda value: value >= 0, "temperature must be non-negative, got {}.", True),
    ("top_p", lambda value: 0 < value <= 1, "top_p must be in (0, 1], got {}.", True),
    ("min_p", lambda value: 0 <= value <= 1, "min_p must be in [0, 1], got {}.", False),
    ("min_tokens", lambda v: v >= 0, "min_tokens must be greater than or equal to 0, got {}.", False),
)


def _check_ranges(body: Generation) -> None:
    if body.n is not None and body.n > MAX_N:
        raise bad_request(
            f"n must be at most {MAX_N}, got {body.n}. "
            "To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
        )
    for name, fits, message, named in _RANGES:
        value = getattr(body, name)
        if value is not None and not fits(value):
            raise bad_request(message.format(value), *((name, value) if named else ()))


def check_logprobs(asked: int) -> None:
    """Refuse more alternatives than ``--max-logprobs``.

    Raises:
        ApiError: there are more.
    """
    if asked > MAX_LOGPROBS:
        text = f"Requested sample logprobs of {asked}, which is greater than max allowed: {MAX_LOGPROBS}"
        # vLLM ends this sentence without a full stop.
        raise bad_request(text, "logprobs", asked)
