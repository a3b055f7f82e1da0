"""Sessions: one request, or the turns of a conversation that are sent one after the other."""

import random
from collections.abc import Callable, Iterator
from itertools import accumulate, count, repeat

import msgspec

from daemons.loadtest.load.arrivals import arrivals, poisson
from daemons.loadtest.load.plan import Closed, Plan, PromptType, Trace
from daemons.loadtest.load.prompts import (
    Prompts,
    chat_body,
    completion_body,
    draw_count,
    embedding_body,
)
from daemons.loadtest.load.traces import MOONCAKE_BLOCK, Conversation, Row, TraceFile, read_trace

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings"}
CHARS_PER_TOKEN = 4
"""Of English text in the usual vocabularies; only bounds the answers of replayed conversations."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it will be sent. `type` and `key` index the workload's names."""

    type: int
    key: int
    path: str
    body: bytes
    stream: bool
    planned_tokens: int
    """Upper estimate of prompt and output tokens, for the budget."""
    cancel_after: int = 0
    """Leave after so many events; 0: never."""
    bytes_per_second: int = 0
    """Read no faster; 0: as fast as it comes."""


Session = Iterator[Request]


class Workload:
    """Everything that will be sent: sessions, and when they begin.

    Attributes:
        types: names of the prompt types, in the order of their indexes.
        starts: intended starts in seconds; None for a closed loop.
    """

    def __init__(self, types: list[str], starts: Iterator[float] | None, sessions: Iterator[Session]) -> None:
        self.types = types
        self.starts = starts
        self.sessions = sessions


def workload(plan: Plan, model: str, nonce: str) -> Workload:
    """The workload of `plan`, the same for the same seed but for the salt `nonce` in the prompts.

    Raises:
        Fatal: a trace cannot be read.
    """
    rng = random.Random(plan.seed)  # noqa: S311 - reproducible, not secret
    prompts = Prompts(plan.seed, nonce)
    pick_key = _chooser([key.weight for key in plan.keys] or [1.0], rng)
    if isinstance(plan.load, Trace):
        trace = read_trace(plan.load.file, plan.load.format, plan.requests or plan.budget.requests)
        return _replay(plan.load, trace, model, prompts, pick_key, rng)
    sessions = _mixed(plan.mix, model, prompts, pick_key, rng)
    starts = None if isinstance(plan.load, Closed) else arrivals(plan, random.Random(plan.seed + 1))  # noqa: S311
    if starts is None and plan.requests is not None:
        sessions = (session for session, _ in zip(sessions, range(plan.requests), strict=False))
    return Workload([kind.name for kind in plan.mix], starts, sessions)


def _chooser(weights: list[float], rng: random.Random) -> Callable[[], int]:
    if len(weights) == 1:
        return lambda: 0
    cumulative, choices = list(accumulate(weights)), range(len(weights))
    return lambda: rng.choices(choices, cum_weights=cumulative)[0]


def _mixed(
    mix: list[PromptType], model: str, prompts: Prompts, pick_key: Callable[[], int], rng: random.Random
) -> Iterator[Session]:
    pick_type = _chooser([kind.weight for kind in mix], rng)
    while True:
        index = pick_type()
        yield iter((_request(mix[index], index, pick_key(), model, prompts, rng),))


def _draw(rng: random.Random, kind: PromptType) -> tuple[int, int]:
    prompt, output = kind.prompt_tokens, kind.output_tokens
    return (
        draw_count(rng, prompt.mean, prompt.stddev, prompt.min, prompt.max, uniform=prompt.uniform),
        draw_count(rng, output.mean, output.stddev, output.min, output.max, uniform=output.uniform),
    )


def _request(
    kind: PromptType, index: int, key: int, model: str, prompts: Prompts, rng: random.Random
) -> Request:
    prompt_tokens, output_tokens = _draw(rng, kind)
    if kind.shared_prefix_tokens:
        group = f"{kind.name}-{rng.randrange(kind.prefix_groups)}"
        text = prompts.with_prefix(prompt_tokens, kind.shared_prefix_tokens, group)
    else:
        text = prompts.unique(prompt_tokens)
    cancelled = kind.cancel is not None and rng.random() < kind.cancel.fraction
    slow = kind.slow_reader is not None and rng.random() < kind.slow_reader.fraction
    return Request(
        type=index,
        key=key,
        path=PATHS[kind.endpoint],
        body=_body(kind, kind.model or model, text, output_tokens),
        stream=kind.stream and kind.endpoint != "embeddings",
        planned_tokens=prompt_tokens + (0 if kind.endpoint == "embeddings" else output_tokens),
        cancel_after=kind.cancel.after_tokens if cancelled and kind.cancel else 0,
        bytes_per_second=kind.slow_reader.bytes_per_second if slow and kind.slow_reader else 0,
    )


def _body(kind: PromptType, model: str, text: str, max_tokens: int) -> bytes:
    if kind.endpoint == "embeddings":
        return embedding_body(model, text)
    if kind.endpoint == "completions":
        return completion_body(
            model, text, max_tokens=max_tokens, stream=kind.stream, ignore_eos=kind.ignore_eos
        )
    messages = (("user", text),)
    return chat_body(model, messages, max_tokens=max_tokens, stream=kind.stream, ignore_eos=kind.ignore_eos)


def _replay(
    load: Trace,
    trace: TraceFile,
    model: str,
    prompts: Prompts,
    pick_key: Callable[[], int],
    rng: random.Random,
) -> Workload:
    if trace.conversations:
        rate = load.rate or 1.0
        sessions = (_turns(c, load, model, pick_key(), prompts.salt()) for c in trace.conversations)
        starts = (at for at, _ in zip(poisson(rate, rng), trace.conversations, strict=False))
        return Workload(["first-turn", "later-turns"], starts, sessions)
    types = sorted({row.type for row in trace.rows})
    indexes = dict(zip(types, count(), strict=False))
    return Workload(
        types,
        (row.at / load.speed for row in trace.rows),
        (
            iter((_row_request(row, indexes[row.type], key(), load, model, prompts),))
            for row, key in zip(trace.rows, repeat(pick_key), strict=False)
        ),
    )


def _row_request(row: Row, index: int, key: int, load: Trace, model: str, prompts: Prompts) -> Request:
    if row.blocks:
        text = prompts.from_blocks(row.prompt_tokens, row.blocks, MOONCAKE_BLOCK)
    else:
        text = prompts.unique(row.prompt_tokens)
    return Request(
        type=index,
        key=key,
        path=PATHS["chat"],
        body=chat_body(
            model, (("user", text),), max_tokens=row.output_tokens, stream=True, ignore_eos=load.ignore_eos
        ),
        stream=True,
        planned_tokens=row.prompt_tokens + row.output_tokens,
    )


def _turns(conversation: Conversation, load: Trace, model: str, key: int, salt: str) -> Session:
    """Each turn carries the recorded answers so far, so that a run does not depend on what a model says."""
    messages: list[tuple[str, str]] = [("system", f"Conversation {salt}.")]
    for number, (asked, answered) in enumerate(conversation.turns):
        messages.append(("user", asked))
        max_tokens = max(1, len(answered) // CHARS_PER_TOKEN)
        body = chat_body(model, messages, max_tokens=max_tokens, stream=True, ignore_eos=load.ignore_eos)
        yield Request(
            type=min(number, 1),
            key=key,
            path=PATHS["chat"],
            body=body,
            stream=True,
            planned_tokens=len(body) // CHARS_PER_TOKEN + max_tokens,
        )
        messages.append(("assistant", answered))
