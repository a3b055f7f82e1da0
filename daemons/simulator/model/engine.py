"""The engine: requests in, tokens out, one step at a time. Time comes from the caller."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from daemons.simulator.model.output import Finish, Output, Sampling
from daemons.simulator.model.scheduler import Phase, Scheduler, Sequence, Step
from daemons.simulator.model.stats import Lifetime, Stats
from daemons.simulator.model.text import Piece
from daemons.simulator.model.timing import StepCost


class Refused(Exception):
    """A queue limit keeps a request out; `reason` is the flag that set it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Dead(Exception):
    """The engine has died; nothing more will come."""


class Sink(Protocol):
    """Where the tokens of a request go. Called from the step loop: must not block and must not raise."""

    def token(self, choice: int, piece: Piece, generated: int, finish: Finish | None) -> None:
        """The next token of `choice`; `generated` counts those of it so far."""

    def failed(self, error: Exception) -> None:
        """The engine died before the request was finished; nothing follows."""


@dataclass(slots=True, eq=False)
class Choice:
    """One continuation of a request's prompt."""

    request: "Request"
    index: int
    sequence: Sequence
    script: Iterator[Piece]
    output: Output


@dataclass(slots=True, eq=False)
class Request:
    """What a client asked for: one or more sequences that share a sink."""

    sink: Sink
    sampling: Sampling
    choices: list[Choice] = field(default_factory=list)
    unfinished: int = 0

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache supplied to the first sequence."""
        return self.choices[0].sequence.cached


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """``--max-num-queued-reqs`` and ``--max-num-queued-tokens``; None is no limit."""

    requests: int | None = None
    tokens: int | None = None


class Engine:
    """Requests, scheduler, timing and counters."""

    def __init__(self, scheduler: Scheduler, cost: StepCost, limits: QueueLimits | None = None) -> None:
        self.scheduler = scheduler
        self.stats = Stats()
        self._cost = cost
        self._limits = limits or QueueLimits()
        self._choices: dict[Sequence, Choice] = {}
        self._requests: set[Request] = set()

    @property
    def in_flight(self) -> int:
        """Requests not yet finished."""
        return len(self._requests)

    def admit(self, requests: int, tokens: int) -> None:
        """Refuse what would exceed a queue limit.

        Raises:
            Refused: the limit that stands in the way.
        """
        limit = self._limits.requests
        if limit is not None and len(self._requests) + requests > limit:
            self.stats.rejected_requests += 1
            raise Refused("max_num_queued_reqs")
        limit = self._limits.tokens
        if limit is not None and self._backlog() + tokens > limit:
            self.stats.rejected_tokens += 1
            raise Refused("max_num_queued_tokens")

    def submit(
        self,
        prompt: list[int],
        scripts: list[Iterator[Piece]],
        sampling: Sampling,
        sink: Sink,
        *,
        now: float,
        salt: int = 0,
    ) -> Request:
        """Queue a request with one sequence for each of `scripts`, the texts that will be written."""
        request = Request(sink, sampling, unfinished=len(scripts))
        for index, script in enumerate(scripts):
            sequence = Sequence(list(prompt), now, salt)
            choice = Choice(request, index, sequence, script, Output(sampling))
            request.choices.append(choice)
            self._choices[sequence] = choice
            self.scheduler.add(sequence)
        self._requests.add(request)
        return request

    def abort(self, request: Request) -> None:
        """End `request` without a word; harmless when it is already over."""
        for choice in request.choices:
            if choice.sequence.phase is not Phase.FINISHED:
                self._drop(choice)
        self._requests.discard(request)

    def die(self, error: Exception) -> None:
        """Fail every request."""
        for request in list(self._requests):
            self.abort(request)
            request.sink.failed(error)

    def begin(self, now: float) -> tuple[Step, float] | None:
        """Start a step; returns it and its duration in seconds, or None when there is nothing to do."""
        if not self.scheduler.busy:
            return None
        step = self.scheduler.plan(now)
        self.stats.preemptions += step.preempted
        return step, self._cost.seconds(step)

    def end(self, step: Step, now: float) -> None:
        """Finish `step` at `now`: every sequence that is far enough gets its next token."""
        sampling = self.scheduler.complete(step)
        prefilled = 0
        for sequence in sampling:
            if sequence.first_token is None:
                prefilled += self._book_first(sequence, now)
            elif sequence.last_token is not None:
                self.stats.observe("inter_token_latency_seconds", now - sequence.last_token)
            sequence.last_token = now
            self._emit(self._choices[sequence], now)
        self.stats.generation_tokens += len(sampling)
        self.stats.observe("iteration_tokens_total", prefilled + len(sampling))

    def _emit(self, choice: Choice, now: float) -> None:
        raw = next(choice.script)
        sequence = choice.sequence
        sequence.tokens.append(raw.token)
        piece, finish = choice.output.push(raw)
        if finish is not None:
            self._book_finished(choice, finish, now)
            self._drop(choice)
            request = choice.request
            request.unfinished -= 1
            if not request.unfinished:
                self._book_request(request)
        choice.request.sink.token(choice.index, piece, sequence.generated, finish)

    def _drop(self, choice: Choice) -> None:
        self.scheduler.finish(choice.sequence)
        del self._choices[choice.sequence]

    def _book_request(self, request: Request) -> None:
        self._requests.discard(request)
        longest = max(choice.sequence.generated for choice in request.choices)
        self.stats.observe("request_max_num_generation_tokens", longest)
        self.stats.observe("request_params_n", len(request.choices))

    def _book_first(self, sequence: Sequence, now: float) -> int:
        sequence.first_token = now
        stats = self.stats
        stats.observe("time_to_first_token_seconds", now - sequence.arrived)
        stats.prompt_tokens += sequence.prompt_length
        stats.cached_tokens += sequence.cached
        return sequence.prompt_length

    def _book_finished(self, choice: Choice, finish: Finish, now: float) -> None:
        sequence, stats = choice.sequence, self.stats
        admitted = sequence.arrived if sequence.admitted is None else sequence.admitted
        first = now if sequence.first_token is None else sequence.first_token
        life = Lifetime(admitted - sequence.arrived, first - admitted, now - first, now - sequence.arrived)
        stats.finished[finish.reason] += 1
        stats.times(life, sequence.generated)
        stats.observe("request_prompt_tokens", sequence.prompt_length)
        stats.observe("request_generation_tokens", sequence.generated)
        stats.observe("request_params_max_tokens", choice.request.sampling.max_tokens)
        stats.observe("request_num_preemptions", sequence.preemptions)
        stats.observe("request_prefill_kv_computed_tokens", sequence.prompt_length - sequence.cached)

    def _backlog(self) -> int:
        return sum(len(sequence.tokens) - sequence.computed for sequence in self.scheduler.waiting)
