"""What a client sees of a text: limits, the end of sequence, stop strings."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.simulator.model.output import Finish, Output, Sampling
from daemons.simulator.model.text import END, piece_of


def play(parts: Sequence[str | None], sampling: Sampling) -> tuple[list[str], Finish | None]:
    """What is shown of `parts` (None is the end of sequence), and why it ended."""
    output, shown = Output(sampling), []
    for part in parts:
        piece, finish = output.push(END if part is None else piece_of(part, 1))
        shown.append(piece.text)
        if finish:
            return shown, finish
    return shown, None


parts = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=20)


@given(parts=parts, stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_is_never_shown_and_nothing_before_it_is_lost(
    parts: list[str], stops: list[str]
) -> None:
    shown, finish = play(parts, Sampling(len(parts), stop=tuple(stops)))
    text, whole = "".join(shown), "".join(parts)
    assert whole.startswith(text)
    assert not any(stop in text for stop in stops)
    assert finish is not None
    if finish.stop_reason is None:
        assert text == whole
        assert finish.reason == "length"
    else:
        assert whole[len(text) :].startswith(finish.stop_reason)


@given(parts=parts, stop=st.text("abc", min_size=1, max_size=4))
def test_a_stop_string_may_be_kept(parts: list[str], stop: str) -> None:
    sampling = Sampling(len(parts), stop=(stop,), include_stop_str_in_output=True)
    shown, finish = play(parts, sampling)
    assert finish is not None
    assert "".join(shown).endswith(stop) or finish.stop_reason is None


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(10), Finish("stop")),
        (Sampling(2), Finish("length")),
        (Sampling(5, ignore_eos=True), Finish("length")),
        (Sampling(5, min_tokens=4), Finish("length")),
    ],
)
def test_why_it_ends(sampling: Sampling, expected: Finish) -> None:
    assert play(["a", "b", None, "c", "d"], sampling)[1] == expected
