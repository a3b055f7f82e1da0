"""The text says what it is, is the same for the same seed, and survives its own tokens."""

from itertools import islice, takewhile

from hypothesis import given
from hypothesis import strategies as st

from daemons.simulator.model.text import END, NOTICE, alternatives, answer, decode, encode


@given(st.text())
def test_text_survives_its_tokens(text: str) -> None:
    assert decode(encode(text)) == text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def test_tokens_have_about_four_characters_of_english() -> None:
    text = NOTICE * 10
    assert 3.0 < len(text) / len(encode(text)) < 5.5


def test_ids_of_no_text_are_left_out() -> None:
    assert decode([1, 2, 3, 999, *encode("here")]) == "here"


def test_an_answer_is_the_same_for_the_same_seed_and_says_that_it_is_simulated() -> None:
    one, same, other = (list(islice(answer(seed, 50), 200)) for seed in (1, 1, 2))
    assert one == same != other
    text = "".join(piece.text for piece in takewhile(lambda piece: piece is not END, one))
    assert text.startswith(NOTICE)
    assert text.endswith(".")


def test_an_answer_goes_on_for_those_who_ignore_its_end() -> None:
    assert len([piece for piece in islice(answer(1, 10), 5000) if piece is not END]) == 4999


def test_alternatives_are_the_same_for_the_same_token() -> None:
    assert alternatives(7, 5) == alternatives(7, 5)
    assert len(alternatives(7, 5)) == 5
