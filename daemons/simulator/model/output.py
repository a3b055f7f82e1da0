"""From the tokens of one sequence to the text a client sees, and to the reason it ends."""

from dataclasses import dataclass

from daemons.simulator.model.text import END, Piece, piece_of


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request asks of its continuation; names as in the API."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a sequence ended: ``stop`` or ``length``; `stop_reason` is the stop string that was found."""

    reason: str
    stop_reason: str | None = None


_STOP, _LENGTH = Finish("stop"), Finish("length")


class Output:
    """Applies the limits and stop strings of one sequence.

    While a stop string could still be completed, as many characters are held back as the longest of them
    has, less one: what vLLM's detokenizer does.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._count = 0
        self._text = ""
        self._shown = 0
        hold = max((len(stop) for stop in sampling.stop), default=1) - 1
        self._hold = 0 if sampling.include_stop_str_in_output else hold

    def push(self, piece: Piece) -> tuple[Piece, Finish | None]:
        """Take the next token; returns what of it is to be shown, and whether it was the last."""
        self._count += 1
        sampling = self._sampling
        finish: Finish | None = None
        if piece is END and not sampling.ignore_eos and self._count > sampling.min_tokens:
            finish = _STOP
        elif self._count >= sampling.max_tokens:
            finish = _LENGTH
        if not sampling.stop:
            return piece, finish
        return self._search(piece, finish)

    def _search(self, piece: Piece, finish: Finish | None) -> tuple[Piece, Finish | None]:
        checked = len(self._text)
        self._text += piece.text
        if self._count > self._sampling.min_tokens:
            stop = self._completed(checked)
            if stop is not None:
                at = self._text.find(stop, max(0, checked - len(stop) + 1))
                end = at + len(stop) if self._sampling.include_stop_str_in_output else at
                return self._show(end, piece), Finish("stop", stop)
        end = len(self._text) if finish else max(self._shown, len(self._text) - self._hold)
        return self._show(end, piece), finish

    def _completed(self, checked: int) -> str | None:
        """The stop string that is complete first, of equal ones the first in the request."""
        best, best_end = None, len(self._text) + 1
        for stop in self._sampling.stop:
            at = self._text.find(stop, max(0, checked - len(stop) + 1))
            if at >= 0 and at + len(stop) < best_end:
                best, best_end = stop, at + len(stop)
        return best

    def _show(self, end: int, piece: Piece) -> Piece:
        text, self._shown = self._text[self._shown : end], max(self._shown, end)
        return piece_of(text, piece.token)
