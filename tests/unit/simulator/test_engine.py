"""The engine model on a virtual clock: nothing is lost, nothing comes early, every block comes back."""

import random
from dataclasses import dataclass, field
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.simulator.model.blocks import BlockPool
from daemons.simulator.model.engine import Engine, QueueLimits, Refused, Request
from daemons.simulator.model.output import Finish, Sampling
from daemons.simulator.model.scheduler import Limits, Scheduler, Step
from daemons.simulator.model.text import Piece, piece_of
from daemons.simulator.model.timing import LinearCost

INTER_TOKEN, PER_SEQUENCE, PREFILL_RATE = 0.02, 0.0001, 1000.0


@dataclass
class Recorder:
    """A sink that keeps what it is given, with the time."""

    clock: "Clock"
    tokens: list[tuple[int, float]] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def token(self, choice: int, piece: Piece, generated: int, finish: Finish | None) -> None:
        self.tokens.append((piece.token, self.clock.now))
        if finish is not None:
            self.finishes.append(finish)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)


@dataclass
class Clock:
    """Virtual time in seconds."""

    now: float = 0.0


def build(
    *,
    blocks: int = 64,
    block_size: int = 4,
    seqs: int = 4,
    batched: int = 16,
    limits: QueueLimits | None = None,
) -> Engine:
    scheduler = Scheduler(Limits(seqs, batched, block_size), BlockPool(blocks))
    cost = LinearCost(INTER_TOKEN, PER_SEQUENCE, PREFILL_RATE, 0.0, random.Random(0))  # noqa: S311 - jitter
    return Engine(scheduler, cost, limits)


def numbered(first: int) -> "count[int]":
    return count(first)


def submit(engine: Engine, clock: Clock, prompt: list[int], max_tokens: int) -> tuple[Request, Recorder]:
    sink = Recorder(clock)
    script = (piece_of(f" {number}", number) for number in numbered(1000))
    sampling = Sampling(max_tokens, ignore_eos=True)
    return engine.submit(prompt, [script], sampling, sink, now=clock.now), sink


def advance(engine: Engine, clock: Clock) -> Step | None:
    begun = engine.begin(clock.now)
    if begun is None:
        return None
    step, seconds = begun
    clock.now += seconds
    engine.end(step, clock.now)
    return step


def run(engine: Engine, clock: Clock, most: int = 20_000) -> list[Step]:
    steps: list[Step] = []
    while (step := advance(engine, clock)) is not None:
        steps.append(step)
        assert len(steps) < most, "the engine does not come to an end"
        check_books(engine, step)
    return steps


def check_books(engine: Engine, step: Step) -> None:
    scheduler, pool = engine.scheduler, engine.scheduler.pool
    limits = scheduler.limits
    assert step.scheduled, "a step without work"
    assert sum(tokens for _, tokens in step.scheduled) <= limits.max_num_batched_tokens
    assert step.prefill_tokens + step.decode_tokens == sum(tokens for _, tokens in step.scheduled)
    assert len(scheduler.running) <= limits.max_num_seqs
    assert pool.free + pool.used == pool.total
    for sequence in scheduler.running:
        assert len(sequence.blocks) * limits.block_size >= sequence.computed
    for sequence in scheduler.waiting:
        assert not sequence.blocks


requests = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 30)), min_size=1, max_size=12
)


@given(
    requests=requests,
    seqs=st.integers(1, 6),
    batched=st.integers(1, 32),
    block_size=st.sampled_from([1, 4, 16]),
    spare=st.integers(0, 40),
)
def test_every_request_gets_all_its_tokens_in_time(
    requests: list[tuple[int, int, int]], seqs: int, batched: int, block_size: int, spare: int
) -> None:
    # The pool holds the longest sequence, as a start-up check guarantees, and little more.
    longest = max(prompt + output for prompt, output, _ in requests)
    engine = build(
        blocks=-(-longest // block_size) + spare, block_size=block_size, seqs=seqs, batched=batched
    )
    clock = Clock()
    accepted = []
    for number, (length, output, delay) in enumerate(requests):
        for _ in range(delay):
            advance(engine, clock)
        prompt = [number * 100 + token for token in range(length)]
        accepted.append((submit(engine, clock, prompt, output), length, output, clock.now))
    run(engine, clock)
    for (request, sink), length, output, arrived in accepted:
        assert [token for token, _ in sink.tokens] == list(range(1000, 1000 + output))
        assert sink.finishes == [Finish("length")]
        times = [at for _, at in sink.tokens]
        assert all(later - earlier >= INTER_TOKEN - 1e-9 for earlier, later in pairwise(times))
        sequence = request.choices[0].sequence
        assert sequence.admitted is not None
        queued = sequence.admitted - arrived
        assert times[0] - arrived >= queued + INTER_TOKEN + (length - sequence.cached) / PREFILL_RATE - 1e-9
    assert engine.in_flight == 0
    assert not engine.scheduler.busy
    assert engine.scheduler.pool.used == 0
    assert engine.stats.generation_tokens == sum(output for _, output, _ in requests)
    assert engine.stats.prompt_tokens == sum(length for length, _, _ in requests)
    assert sum(engine.stats.finished.values()) == len(requests)


@given(data=st.data(), requests=requests)
def test_an_abort_at_any_time_frees_its_blocks_at_once(
    data: st.DataObject, requests: list[tuple[int, int, int]]
) -> None:
    engine, clock = build(blocks=20, seqs=3), Clock()
    alive: list[tuple[Request, Recorder]] = []
    for number, (length, output, steps) in enumerate(requests):
        alive.append(submit(engine, clock, [number] * length, output))
        for _ in range(min(steps, 5)):
            advance(engine, clock)
        request, sink = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
        engine.abort(request)
        said = len(sink.tokens)
        assert all(not choice.sequence.blocks for choice in request.choices)
        advance(engine, clock)
        assert len(sink.tokens) == said
        engine.abort(request)
    run(engine, clock)
    assert engine.scheduler.pool.used == 0
    assert engine.in_flight == 0


def test_an_abort_within_a_step_silences_it() -> None:
    engine, clock = build(), Clock()
    request, sink = submit(engine, clock, [1, 2, 3], 5)
    begun = engine.begin(clock.now)
    assert begun is not None
    engine.abort(request)
    engine.end(begun[0], 1.0)
    assert sink.tokens == []
    assert engine.begin(1.0) is None


def test_decodes_go_before_prefills_and_a_long_prompt_is_cut() -> None:
    engine, clock = build(batched=16, blocks=64), Clock()
    submit(engine, clock, [1, 2, 3], 50)
    advance(engine, clock)
    submit(engine, clock, list(range(40)), 5)
    step = advance(engine, clock)
    assert step is not None
    assert [tokens for _, tokens in step.scheduled] == [1, 15]
    assert (step.decode_tokens, step.prefill_tokens) == (1, 15)


def test_counters_of_tokens_stand_still_during_a_long_prefill_while_the_cache_fills() -> None:
    engine, clock = build(batched=8), Clock()
    submit(engine, clock, list(range(40)), 1)
    usage = []
    for _ in range(4):
        advance(engine, clock)
        usage.append(engine.scheduler.pool.usage)
        assert engine.stats.prompt_tokens == engine.stats.generation_tokens == 0
    assert usage == sorted(set(usage))


def test_when_blocks_run_out_the_newest_starts_over() -> None:
    engine, clock = build(blocks=6, block_size=4, seqs=4), Clock()
    old, _ = submit(engine, clock, [1] * 8, 12)
    new, _ = submit(engine, clock, [2] * 8, 12)
    run(engine, clock)
    assert engine.stats.preemptions > 0
    assert old.choices[0].sequence.preemptions == 0
    assert new.choices[0].sequence.preemptions == engine.stats.preemptions


def test_a_repeated_prompt_is_found_in_the_cache_but_for_its_last_token() -> None:
    engine, clock = build(block_size=4), Clock()
    submit(engine, clock, list(range(8)), 1)
    run(engine, clock)
    again, _ = submit(engine, clock, list(range(8)), 1)
    run(engine, clock)
    assert again.cached_tokens == 4
    assert engine.scheduler.hit_tokens == 4
    assert engine.stats.cached_tokens == 4


def test_the_answer_is_part_of_the_prefix_of_the_next_turn() -> None:
    engine, clock = build(block_size=4), Clock()
    first, _ = submit(engine, clock, list(range(6)), 7)
    run(engine, clock)
    history = first.choices[0].sequence.tokens
    second, _ = submit(engine, clock, [*history, 7, 7], 1)
    run(engine, clock)
    assert second.cached_tokens == 12


def test_queue_limits_refuse_and_are_counted() -> None:
    engine = build(limits=QueueLimits(requests=1))
    engine.admit(1, 10)
    submit(engine, Clock(), [1], 5)
    with pytest.raises(Refused, match="max_num_queued_reqs"):
        engine.admit(1, 10)
    assert engine.stats.rejected_requests == 1


def test_the_token_limit_counts_prompts_that_wait() -> None:
    engine = build(limits=QueueLimits(tokens=10))
    submit(engine, Clock(), [1] * 8, 5)
    with pytest.raises(Refused, match="max_num_queued_tokens"):
        engine.admit(1, 3)
    engine.admit(1, 2)
    assert engine.stats.rejected_tokens == 1


def test_death_fails_every_request_and_leaves_nothing() -> None:
    engine, clock = build(), Clock()
    sinks = [submit(engine, clock, [number], 5)[1] for number in range(6)]
    advance(engine, clock)
    engine.die(RuntimeError("gone"))
    assert [len(sink.errors) for sink in sinks] == [1] * 6
    assert engine.begin(clock.now) is None
    assert engine.scheduler.pool.used == 0


def test_the_same_seed_gives_the_same_run() -> None:
    def total(seed: int) -> float:
        scheduler = Scheduler(Limits(4, 16, 4), BlockPool(64))
        cost = LinearCost(0.02, 0.0, 1000.0, 0.1, random.Random(seed))  # noqa: S311 - jitter
        engine = Engine(scheduler, cost)
        clock = Clock()
        submit(engine, clock, [1, 2, 3], 30)
        run(engine, clock)
        return clock.now

    assert total(1) == total(1) != total(2)
