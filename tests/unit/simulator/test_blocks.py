"""The block pool never loses a block, and finds a prefix again exactly as long as nobody took its blocks."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daemons.simulator.model.blocks import BlockPool, block_hashes

TOTAL = 8


class Pool(RuleBasedStateMachine):
    """Any order of takes, shares and releases."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.held: list[list[int]] = []
        self.names: dict[int, int] = {}

    @rule(count=st.integers(0, TOTAL + 1))
    def take(self, count: int) -> None:
        free = self.pool.free
        taken = self.pool.take(count)
        assert (taken is None) == (count > free)
        if taken is not None:
            assert len(set(taken)) == count
            assert not set(taken) & {block for blocks in self.held for block in blocks}
            self.held.append(taken)

    @precondition(lambda self: any(self.held))
    @rule(data=st.data(), name=st.integers(0, 5))
    def remember(self, data: st.DataObject, name: int) -> None:
        blocks = data.draw(st.sampled_from([blocks for blocks in self.held if blocks]))
        self.pool.remember(blocks[0], name)

    @rule(names=st.lists(st.integers(0, 5), max_size=4, unique=True))
    def share(self, names: list[int]) -> None:
        matched = self.pool.match(names)
        besides = self.pool.available_besides(matched)
        self.pool.share(matched)
        assert self.pool.free == besides
        self.held.append(matched)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def blocks_are_conserved(self) -> None:
        in_use = {block for blocks in self.held for block in blocks}
        assert self.pool.used == len(in_use)
        assert self.pool.used + self.pool.free == TOTAL
        assert 0.0 <= self.pool.usage <= 1.0


TestPool = Pool.TestCase


@given(tokens=st.lists(st.integers(0, 9), max_size=40), size=st.integers(1, 8))
def test_equal_prefixes_have_equal_hashes(tokens: list[int], size: int) -> None:
    longer = block_hashes([*tokens, *range(100, 100 + size)], size)
    hashes = block_hashes(tokens, size)
    assert longer[: len(hashes)] == hashes
    assert len(hashes) == len(tokens) // size


def test_a_salt_separates_equal_prompts() -> None:
    assert block_hashes([1, 2, 3, 4], 2, salt=1) != block_hashes([1, 2, 3, 4], 2, salt=2)


def test_a_released_prefix_is_found_until_its_block_is_taken() -> None:
    pool = BlockPool(2)
    first = pool.take(1) or []
    pool.remember(first[0], 42)
    pool.release(first)
    assert pool.match([42]) == first
    pool.take(2)
    assert pool.match([42]) == []


def test_the_end_of_a_prompt_is_evicted_before_its_start() -> None:
    pool = BlockPool(2)
    blocks = pool.take(2) or []
    pool.remember(blocks[0], 1)
    pool.remember(blocks[1], 2)
    pool.release(blocks)
    pool.take(1)
    assert pool.match([1, 2]) == blocks[:1]
