"""What the simulator says, and how text becomes tokens.

A token is up to six bytes of text, so English has about four characters a token, as with real
vocabularies. Its id is those bytes with a marker in front: any text round-trips without a vocabulary file.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

_TOKEN_BYTES = 6
_PIECES = re.compile(r" ?[^\W_]+| ?[^\w\s]+|_+|\s+")
_EOS_ID = 2
_BOS_ID = 1

NOTICE = "This is a simulated answer: no language model was run to write it."
_SENTENCES = (
    "The words follow one another at the pace of the timing model, and mean nothing more.",
    "A scheduler in front of a batch decides which request may use the next step of the accelerator.",
    "Long prompts are cut into chunks, so that those who are already reading do not have to wait for them.",
    "Every token that is written needs room in the cache, and the room is counted in blocks.",
    "When the blocks run out, the newest request gives its own back and starts again later.",
    "The first token takes as long as the queue and the prompt; those after it come one step at a time.",
    "A prompt that begins like an earlier one finds part of its work already done.",
    "The morning was clear, and the harbour lay so still that the boats seemed to stand on glass.",
    "An old clock in the hall kept good time, though nobody could remember who had last wound it.",
    "She wrote the list twice, once for herself and once for the neighbour who always forgot.",
    "The train left a minute early, which surprised everyone except the conductor.",
    "Bread needs patience more than flour, the baker said, and closed the oven door.",
    "Between the hills the road turns north, past a mill that has not ground corn for fifty years.",
    "He counted the steps to the lighthouse every summer and never reached the same number.",
    "Rain fell on the tin roof all night, and by dawn the garden smelled of earth and mint.",
    "The library keeps its maps in flat drawers, and the oldest of them shows a river that is gone.",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One token on its way out.

    Attributes:
        text: what it adds to the answer; empty for the end of sequence.
        json: `text` as a JSON string.
        token: its id.
    """

    text: str
    json: bytes
    token: int


def piece_of(text: str, token: int) -> Piece:
    """The piece for `text`."""
    return Piece(text, msgspec.json.encode(text), token)


END = Piece("", b'""', _EOS_ID)
"""End of sequence: counted as a token, shows as nothing."""


def encode(text: str) -> list[int]:
    """The token ids of `text`."""
    return [int.from_bytes(b"\x01" + part, "big") for part in _split(text)]


def decode(tokens: Iterable[int]) -> str:
    """The text of `tokens`; ids that stand for no text are left out."""
    parts: list[bytes] = []
    for token in tokens:
        data = token.to_bytes(max(1, (token.bit_length() + 7) // 8), "big")
        if len(data) > 1 and data[0] == 1:
            parts.append(data[1:])
    return b"".join(parts).decode("utf-8", "replace")


def _split(text: str) -> Iterator[bytes]:
    for match in _PIECES.finditer(text):
        data = match.group().encode("utf-8", "surrogatepass")
        for start in range(0, len(data), _TOKEN_BYTES):
            yield data[start : start + _TOKEN_BYTES]


def _pieces(sentence: str) -> tuple[Piece, ...]:
    return tuple(
        piece_of(part.decode("ascii"), int.from_bytes(b"\x01" + part, "big")) for part in _split(sentence)
    )


_OPENING = _pieces(NOTICE)
_STORY = tuple(_pieces(" " + sentence) for sentence in _SENTENCES)


def answer(seed: int, mean_tokens: int) -> Iterator[Piece]:
    """An endless text, the same for the same `seed`, with `END` where a model would stop.

    The first `END` comes at the end of a sentence, after about `mean_tokens` tokens (exponentially
    distributed, as chat answers roughly are); after it the text goes on, for those who ignore it.
    """
    source = random.Random(seed)  # noqa: S311 - prose, not secrets
    wanted = source.expovariate(1 / mean_tokens) if mean_tokens else 0
    written = len(_OPENING)
    yield from _OPENING
    while written < wanted:
        sentence = source.choice(_STORY)
        written += len(sentence)
        yield from sentence
    yield END
    while True:
        yield from source.choice(_STORY)


def alternatives(token: int, count: int) -> list[Piece]:
    """`count` pieces that could have stood in the place of `token`: for ``top_logprobs``."""
    source = random.Random(token)  # noqa: S311 - prose, not secrets
    return [source.choice(source.choice(_STORY)) for _ in range(count)]
