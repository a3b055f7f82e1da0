"""Answers that are sent whole."""

import asyncio
from dataclasses import dataclass, field

from daemons.simulator.http.errors import internal
from daemons.simulator.model.output import Finish
from daemons.simulator.model.text import Piece


@dataclass(slots=True)
class Gathered:
    """One finished choice."""

    pieces: list[Piece] = field(default_factory=list)
    generated: int = 0
    finish: Finish | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(piece.text for piece in self.pieces)


class Collector:
    """A sink that waits for the end of every choice."""

    def __init__(self, choices: int) -> None:
        self.choices = [Gathered() for _ in range(choices)]
        self._unfinished = choices
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def token(self, choice: int, piece: Piece, generated: int, finish: Finish | None) -> None:
        """Keep the token; see `Sink`."""
        gathered = self.choices[choice]
        gathered.pieces.append(piece)
        gathered.generated = generated
        if finish is not None:
            gathered.finish = finish
            self._unfinished -= 1
            if not self._unfinished and not self._done.done():
                self._done.set_result(None)

    def failed(self, error: Exception) -> None:
        """The engine died; see `Sink`."""
        if not self._done.done():
            self._done.set_exception(internal(str(error)))

    async def wait(self) -> list[Gathered]:
        """The finished choices.

        Raises:
            ApiError: the engine died.
        """
        await self._done
        return self.choices

    @property
    def generated(self) -> int:
        """Tokens of all choices."""
        return sum(gathered.generated for gathered in self.choices)
