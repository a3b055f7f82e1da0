"""Request bodies with prompts of a chosen length, made cheaply while the load runs.

A prompt is a slice of a long row of common English words, each of them one token in the usual vocabularies.
Every prompt carries a salt that no other prompt of this or any other run has, so that a prefix cache cannot
flatter the result beyond the prefixes that are shared on purpose.
"""

import random
from collections.abc import Sequence
from itertools import accumulate, count

import msgspec

_COMMON = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an "
    "they which one you were all her she there would their we him been has when who will no more if out "
    "so up said what its about than into them can only other time new some could these two may first then "
    "do any like my now over such our man me even most made after also did many off before must well back "
    "through years much where your way down should because long each just state those people too mr how "
    "little good world make very year still see own work men day get here old life both between being "
    "under three never know same last "
)
_WORDS = _COMMON.split()
_POOL_WORDS = 1 << 15
SALT_TOKENS = 8
"""About what a salt costs; part of the asked-for length."""


def draw_count(rng: random.Random, mean: float, stddev: float, low: int, high: int, *, uniform: bool) -> int:
    """A token count from the distribution that `Length` describes."""
    if uniform:
        return rng.randint(low, high)
    return max(low, min(high, round(rng.gauss(mean, stddev) if stddev else mean)))


class Prompts:
    """Makes prompt texts.

    Args:
        seed: what the words depend on.
        nonce: tells this run's prompts from those of every other run.
    """

    def __init__(self, seed: int, nonce: str) -> None:
        rng = random.Random(seed)  # noqa: S311 - texts, not secrets
        words = rng.choices(_WORDS, k=_POOL_WORDS)
        self._pool = " ".join(words)
        self._starts = [0, *accumulate(len(word) + 1 for word in words)]
        self._rng = rng
        self._nonce = nonce
        self._serial = count()

    def words(self, tokens: int, start: int | None = None) -> str:
        """`tokens` words, from the pool position `start` or a random one."""
        if tokens <= 0:
            return ""
        if tokens > _POOL_WORDS // 2:
            half = tokens // 2
            return f"{self.words(half, start)} {self.words(tokens - half, start)}"
        if start is None:
            start = int(self._rng.random() * (_POOL_WORDS // 2))
        start %= _POOL_WORDS // 2
        return self._pool[self._starts[start] : self._starts[start + tokens] - 1]

    def salt(self) -> str:
        """Text that no other prompt contains."""
        return f"{self._nonce}-{next(self._serial)}"

    def unique(self, tokens: int) -> str:
        """A prompt of about `tokens` tokens that shares no prefix with any other."""
        return f"{self.salt()} {self.words(tokens - SALT_TOKENS)}".rstrip()

    def with_prefix(self, tokens: int, prefix_tokens: int, group: str) -> str:
        """A prompt whose first `prefix_tokens` tokens are those of every prompt of `group`."""
        prefix = self.block(group, min(prefix_tokens, tokens))
        return f"{prefix} {self.unique(tokens - prefix_tokens)}"

    def block(self, name: str, tokens: int) -> str:
        """The text that belongs to `name`: the same within a run, another in the next."""
        start = random.Random(name).randrange(_POOL_WORDS // 2)  # noqa: S311
        return f"{self._nonce}-{name} {self.words(tokens - SALT_TOKENS, start)}".rstrip()

    def from_blocks(self, tokens: int, blocks: Sequence[int | str], block_tokens: int) -> str:
        """A prompt made of named blocks: prompts whose leading names agree share that prefix (Mooncake)."""
        whole = [self.block(f"h{name}", block_tokens) for name in blocks[: tokens // block_tokens]]
        rest = tokens - len(whole) * block_tokens
        if rest > 0:
            whole.append(self.unique(rest))
        return " ".join(whole)


class Generation:
    """How an answer is asked for."""

    def __init__(self, max_tokens: int, *, stream: bool, ignore_eos: bool) -> None:
        self.fields: dict[str, object] = {"max_tokens": max_tokens}
        if stream:
            # Without it no usage ends the stream, and tokens would have to be guessed from chunks.
            self.fields |= {"stream": True, "stream_options": {"include_usage": True}}
        if ignore_eos:
            self.fields["ignore_eos"] = True


def chat_body(model: str, messages: Sequence[tuple[str, str]], options: Generation) -> bytes:
    """The body of a chat completion; messages are (role, content)."""
    said = [{"role": role, "content": content} for role, content in messages]
    return _encode({"model": model, "messages": said, **options.fields})


def completion_body(model: str, prompt: str, options: Generation) -> bytes:
    """The body of a text completion."""
    return _encode({"model": model, "prompt": prompt, **options.fields})


def embedding_body(model: str, text: str) -> bytes:
    """The body of an embedding."""
    return _encode({"model": model, "input": text})


_encode = msgspec.json.Encoder().encode
