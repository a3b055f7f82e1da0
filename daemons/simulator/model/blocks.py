"""The KV cache as vLLM's V1 engine keeps it: fixed blocks, found again by the hash of their prefix."""

from collections.abc import Sequence


def block_hashes(tokens: Sequence[int], block_size: int, salt: int = 0) -> list[int]:
    """Chained hashes of the full blocks of `tokens`: equal hash, equal prefix and `salt`."""
    hashes: list[int] = []
    parent = salt
    for end in range(block_size, len(tokens) + 1, block_size):
        parent = hash((parent, *tokens[end - block_size : end]))
        hashes.append(parent)
    return hashes


class BlockPool:
    """Blocks with reference counts. A free block keeps its content until it is taken for another use.

    Conservation: ``free + used == total`` after every call.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._references = [0] * total
        self._hash_of: list[int | None] = [None] * total
        self._cached: dict[int, int] = {}
        # Insertion order is the order of eviction: least recently used first.
        self._free: dict[int, None] = dict.fromkeys(range(total))

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks held by at least one sequence."""
        return self.total - len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return self.used / self.total if self.total else 0.0

    def match(self, hashes: Sequence[int]) -> list[int]:
        """The blocks that hold the longest cached prefix of `hashes`; takes none of them."""
        found: list[int] = []
        for value in hashes:
            block = self._cached.get(value)
            if block is None:
                break
            found.append(block)
        return found

    def available_besides(self, matched: Sequence[int]) -> int:
        """Free blocks that remain once `matched` is shared."""
        return len(self._free) - sum(1 for block in matched if not self._references[block])

    def share(self, matched: Sequence[int]) -> None:
        """Take one more reference to each of `matched`."""
        for block in matched:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int] | None:
        """`count` fresh blocks, forgetting what the oldest free ones held; None if there are too few."""
        if count > len(self._free):
            return None
        taken: list[int] = []
        for _ in range(count):
            block = next(iter(self._free))
            del self._free[block]
            self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def remember(self, block: int, value: int) -> None:
        """`block` is full and holds the prefix with the hash `value`."""
        if value not in self._cached and self._hash_of[block] is None:
            self._cached[value] = block
            self._hash_of[block] = value

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each of `blocks`; the end of a sequence is evicted before its start."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None

    def _forget(self, block: int) -> None:
        value = self._hash_of[block]
        if value is not None:
            del self._cached[value]
            self._hash_of[block] = None
