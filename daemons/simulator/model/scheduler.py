"""vLLM's V1 scheduler: continuous batching with chunked prefill and preemption by recomputation.

A step has a budget of tokens. Running sequences are served first, in the order of their admission (so
decodes come before the prefill that was admitted last); what is left of the budget admits waiting ones. A
sequence that finds no free block preempts the newest one, which starts over from its first token.
Source: ``vllm/v1/core/sched/scheduler.py`` of 0.32.
"""

from collections import deque
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from enum import Enum, auto

from daemons.simulator.model.blocks import BlockPool, block_hashes


class Phase(Enum):
    """Where a sequence is."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and its continuation. Times are seconds on the caller's clock.

    Attributes:
        tokens: prompt, then what was generated.
        computed: tokens whose keys and values are in the cache.
        cached: prompt tokens that the prefix cache supplied at the first admission.
    """

    tokens: list[int]
    arrived: float
    salt: int = 0
    prompt_length: int = field(init=False)
    phase: Phase = Phase.WAITING
    computed: int = 0
    cached: int = 0
    preemptions: int = 0
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] | None = None

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass of the model computes.

    Attributes:
        scheduled: the sequences and how many tokens of each.
        prefill_tokens: tokens of prompts, recomputed ones included.
        decode_tokens: sequences that compute only their newest token.
        preempted: sequences thrown back to make room.
    """

    scheduled: Listing[tuple[Sequence, int]]
    prefill_tokens: int
    decode_tokens: int
    preempted: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a step, by the names of vLLM's flags; `block_size` in tokens."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    prefix_caching: bool = True


class Scheduler:
    """Decides what every step computes, and keeps the books of the block pool."""

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        self.limits = limits
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.queried_tokens = 0
        self.hit_tokens = 0

    @property
    def busy(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue `sequence`, first come first served."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """End `sequence`, wherever it is; its blocks are free at once. Doing so twice is harmless."""
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        elif sequence.phase is Phase.WAITING:
            self.waiting.remove(sequence)
        sequence.phase = Phase.FINISHED
        self._release(sequence)

    def plan(self, now: float) -> Step:
        """Choose the next step. Its lists are empty when nothing can run."""
        budget = self.limits.max_num_batched_tokens
        scheduled: list[tuple[Sequence, int]] = []
        preempted = 0
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            count = min(len(sequence.tokens) - sequence.computed, budget)
            preempted += self._make_room(sequence, count)
            if sequence.phase is Phase.RUNNING:
                scheduled.append((sequence, count))
                budget -= count
                index += 1
        if not preempted:
            self._admit(scheduled, budget, now)
        decodes = sum(1 for sequence, count in scheduled if count == 1 and sequence.generated)
        total = sum(count for _, count in scheduled)
        return Step(scheduled, total - decodes, decodes, preempted)

    def complete(self, step: Step) -> list[Sequence]:
        """Book `step` as computed; returns the sequences that now sample a token, in order."""
        sampling: list[Sequence] = []
        size = self.limits.block_size
        for sequence, count in step.scheduled:
            if sequence.phase is not Phase.RUNNING:
                continue
            before = sequence.computed
            sequence.computed = before + count
            if self.limits.prefix_caching and sequence.computed // size > before // size:
                self._remember(sequence, before // size)
            if sequence.computed == len(sequence.tokens):
                sampling.append(sequence)
        return sampling

    def _admit(self, scheduled: list[tuple[Sequence, int]], budget: int, now: float) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_num_seqs:
            sequence = self.waiting[0]
            matched = self._match(sequence)
            hit = len(matched) * self.limits.block_size
            count = min(len(sequence.tokens) - hit, budget)
            needed = self._blocks_for(hit + count) - len(matched)
            if needed > self.pool.available_besides(matched):
                return
            self.waiting.popleft()
            self.pool.share(matched)
            sequence.blocks = matched + (self.pool.take(needed) or [])
            sequence.computed = hit
            sequence.phase = Phase.RUNNING
            self._count_hit(sequence, hit)
            if sequence.admitted is None:
                sequence.admitted = now
                sequence.cached = hit
            self.running.append(sequence)
            scheduled.append((sequence, count))
            budget -= count

    def _count_hit(self, sequence: Sequence, hit: int) -> None:
        if self.limits.prefix_caching and not sequence.preemptions:
            self.queried_tokens += len(sequence.tokens)
            self.hit_tokens += hit

    def _make_room(self, sequence: Sequence, count: int) -> int:
        """Give `sequence` the blocks for `count` more tokens; returns how many were preempted for it."""
        preempted = 0
        while sequence.phase is Phase.RUNNING:
            needed = self._blocks_for(sequence.computed + count) - len(sequence.blocks)
            if needed <= 0:
                break
            taken = self.pool.take(needed)
            if taken is not None:
                sequence.blocks += taken
                break
            self._preempt(self.running[-1])
            preempted += 1
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        sequence.phase = Phase.WAITING
        self.waiting.appendleft(sequence)

    def _match(self, sequence: Sequence) -> list[int]:
        if not self.limits.prefix_caching:
            return []
        size = self.limits.block_size
        if sequence.hashes is None:
            sequence.hashes = block_hashes(sequence.tokens, size, sequence.salt)
        # The last token is always computed: its logits are what is sampled from.
        return self.pool.match(sequence.hashes[: (len(sequence.tokens) - 1) // size])

    def _remember(self, sequence: Sequence, first: int) -> None:
        size = self.limits.block_size
        full = sequence.computed // size
        hashes = sequence.hashes or []
        for index in range(len(hashes), full):
            parent = hashes[-1] if hashes else sequence.salt
            hashes.append(hash((parent, *sequence.tokens[index * size : (index + 1) * size])))
        sequence.hashes = hashes
        for index in range(first, full):
            self.pool.remember(sequence.blocks[index], hashes[index])

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)
