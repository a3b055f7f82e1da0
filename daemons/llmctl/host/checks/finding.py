"""One trouble and its cure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """A trouble.

    Attributes:
        subject: the unit, GPU, file or key that has it.
        what: what is wrong, in one sentence.
        cure: what to do, with the command where there is one.
        warning: whether the service works in spite of it.
    """

    subject: str
    what: str
    cure: str
    warning: bool = False
