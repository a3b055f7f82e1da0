"""Log probabilities: made up, but the same for the same token, and in order."""

from typing import Any

from daemons.simulator.model.text import Piece, alternatives

_FIRST = -0.25
_STEP = -1.5


def chat(piece: Piece, count: int) -> dict[str, Any]:
    """The ``logprobs`` of one chat token with `count` alternatives; the token itself is the likeliest."""
    entry = _entry(piece.text, _FIRST)
    others = [
        _entry(other.text, _FIRST + _STEP * rank)
        for rank, other in enumerate(alternatives(piece.token, max(0, count - 1)), start=1)
    ]
    return {**entry, "top_logprobs": [entry, *others][:count]}


def _entry(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def completion(pieces: list[Piece], count: int, offset: int) -> dict[str, Any]:
    """The ``logprobs`` of completion tokens that begin `offset` characters into the text."""
    offsets: list[int] = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
    tops = [
        {
            piece.text: _FIRST,
            **{
                other.text: _FIRST + _STEP * rank
                for rank, other in enumerate(alternatives(piece.token, max(0, count - 1)), start=1)
                if other.text != piece.text
            },
        }
        for piece in pieces
    ]
    return {
        "text_offset": offsets,
        "token_logprobs": [_FIRST] * len(pieces),
        "tokens": [piece.text for piece in pieces],
        "top_logprobs": tops,
    }
