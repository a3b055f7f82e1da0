"""Sessions: one request, or the turns of a conversation that are sent one after the other."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice, takewhile

import msgspec

from daemons.loadtest.load.arrivals import arrivals, poisson
from daemons.loadtest.load.plan import Closed, Length, Plan, PromptType, Trace
from daemons.loadtest.load.prompts import (
    Generation,
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
        notes: what the reader of the result should know about it.
    """

    def __init__(
        self,
        types: list[str],
        starts: Iterator[float] | None,
        sessions: Iterator[Session],
        notes: Sequence[str] = (),
    ) -> None:
        self.types = types
        self.notes = list(notes)
        self.starts = starts
        self.sessions = sessions


def workload(plan: Plan, model: str, nonce: str) -> Workload:
    """The workload of `plan`, the same for the same seed but for the salt `nonce` in the prompts.

    Raises:
        Fatal: a trace cannot be read.
    """
    maker = _Maker(plan, model, nonce)
    if isinstance(plan.load, Trace):
        trace = read_trace(plan.load.file, plan.load.format, plan.requests or plan.budget.requests)
        return (
            maker.conversations(plan.load, trace) if trace.conversations else maker.replay(plan.load, trace)
        )
    sessions = maker.mixed(plan.mix)
    if isinstance(plan.load, Closed):
        return Workload([kind.name for kind in plan.mix], None, islice(sessions, plan.requests))
    starts = arrivals(plan, random.Random(plan.seed + 1))  # noqa: S311 - reproducible, not secret
    return Workload([kind.name for kind in plan.mix], starts, sessions)


def _skipped(trace: TraceFile) -> list[str]:
    if not trace.skipped:
        return []
    return [f"{trace.skipped} entries of the trace were left out: recorded without a question or an answer"]


def _chooser(weights: Sequence[float], rng: random.Random) -> Callable[[], int]:
    if len(weights) == 1:
        return lambda: 0
    cumulative, choices = list(accumulate(weights)), range(len(weights))
    return lambda: rng.choices(choices, cum_weights=cumulative)[0]


class _Maker:
    """Makes requests for one model."""

    def __init__(self, plan: Plan, model: str, nonce: str) -> None:
        self._rng = random.Random(plan.seed)  # noqa: S311 - reproducible, not secret
        self._prompts = Prompts(plan.seed, nonce)
        self._model = model
        self._duration = plan.duration
        self._pick_key = _chooser([key.weight for key in plan.keys] or [1.0], self._rng)

    def mixed(self, mix: Sequence[PromptType]) -> Iterator[Session]:
        """Single requests of the mix, without end."""
        pick_type = _chooser([kind.weight for kind in mix], self._rng)
        while True:
            index = pick_type()
            yield iter((self._request(mix[index], index),))

    def _draw(self, length: Length) -> int:
        return draw_count(
            self._rng, length.mean, length.stddev, length.min, length.max, uniform=length.uniform
        )

    def _request(self, kind: PromptType, index: int) -> Request:
        rng = self._rng
        prompt_tokens, output_tokens = self._draw(kind.prompt_tokens), self._draw(kind.output_tokens)
        cancelled = kind.cancel is not None and rng.random() < kind.cancel.fraction
        slow = kind.slow_reader is not None and rng.random() < kind.slow_reader.fraction
        return Request(
            type=index,
            key=self._pick_key(),
            path=PATHS[kind.endpoint],
            body=self._body(kind, self._text(kind, prompt_tokens), output_tokens),
            stream=kind.stream and kind.endpoint != "embeddings",
            planned_tokens=prompt_tokens + (0 if kind.endpoint == "embeddings" else output_tokens),
            cancel_after=kind.cancel.after_tokens if cancelled and kind.cancel else 0,
            bytes_per_second=kind.slow_reader.bytes_per_second if slow and kind.slow_reader else 0,
        )

    def _text(self, kind: PromptType, tokens: int) -> str:
        if not kind.shared_prefix_tokens:
            return self._prompts.unique(tokens)
        group = f"{kind.name}-{self._rng.randrange(kind.prefix_groups)}"
        return self._prompts.with_prefix(tokens, kind.shared_prefix_tokens, group)

    def _body(self, kind: PromptType, text: str, max_tokens: int) -> bytes:
        model = kind.model or self._model
        if kind.endpoint == "embeddings":
            return embedding_body(model, text)
        options = Generation(max_tokens, stream=kind.stream, ignore_eos=kind.ignore_eos)
        if kind.endpoint == "completions":
            return completion_body(model, text, options)
        return chat_body(model, (("user", text),), options)

    def replay(self, load: Trace, trace: TraceFile) -> Workload:
        """The rows of a trace with times."""
        types = sorted({row.type for row in trace.rows})
        indexes = {name: index for index, name in enumerate(types)}
        starts = self._in_time(row.at / load.speed for row in trace.rows)
        sessions = (iter((self._of_row(row, indexes[row.type], load),)) for row in trace.rows)
        return Workload(types, starts, sessions, _skipped(trace))

    def _of_row(self, row: Row, index: int, load: Trace) -> Request:
        if row.blocks:
            text = self._prompts.from_blocks(row.prompt_tokens, row.blocks, MOONCAKE_BLOCK)
        else:
            text = self._prompts.unique(row.prompt_tokens)
        options = Generation(row.output_tokens, stream=True, ignore_eos=load.ignore_eos)
        return Request(
            type=index,
            key=self._pick_key(),
            path=PATHS["chat"],
            body=chat_body(self._model, (("user", text),), options),
            stream=True,
            planned_tokens=row.prompt_tokens + row.output_tokens,
        )

    def conversations(self, load: Trace, trace: TraceFile) -> Workload:
        """Recorded conversations, as sessions of several turns."""
        sessions = (self._turns(conversation, load) for conversation in trace.conversations)
        starts = self._in_time(islice(poisson(load.rate or 1.0, self._rng), len(trace.conversations)))
        return Workload(["first-turn", "later-turns"], starts, sessions, _skipped(trace))

    def _in_time(self, starts: Iterator[float]) -> Iterator[float]:
        end = self._duration
        return starts if end is None else takewhile(lambda at: at < end, starts)

    def _turns(self, conversation: Conversation, load: Trace) -> Session:
        """Each turn carries the recorded answers so far: a run does not depend on what a model says."""
        key = self._pick_key()
        messages: list[tuple[str, str]] = [("system", f"Conversation {self._prompts.salt()}.")]
        for number, (asked, answered) in enumerate(conversation.turns):
            messages.append(("user", asked))
            limit = max(1, len(answered) // CHARS_PER_TOKEN)
            options = Generation(limit, stream=True, ignore_eos=load.ignore_eos)
            body = chat_body(self._model, messages, options)
            yield Request(
                type=min(number, 1),
                key=key,
                path=PATHS["chat"],
                body=body,
                stream=True,
                planned_tokens=len(body) // CHARS_PER_TOKEN + limit,
            )
            messages.append(("assistant", answered))
