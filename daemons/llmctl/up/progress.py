"""How a long preparation reports to whoever shows it."""

from typing import Protocol


class Progress(Protocol):
    """Receives the steps of one preparation, in order, from the thread that does it."""

    def phase(self, text: str) -> None:
        """A new step starts; `text` says what is being done."""

    def advance(self, done: float, total: float) -> None:
        """How far the step is, in any one unit; `total` may grow while it runs."""
