"""Records of finished requests, in columns: cheap to keep, to hand to another process and to sort."""

from array import array
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

import msgspec


class Outcome(IntEnum):
    """How a request ended; every kind of failure has its own."""

    OK = 0
    CANCELLED = 1
    """The client left on purpose."""
    RATE_LIMITED = 2
    """429."""
    OVERLOADED = 3
    """503."""
    UNAUTHORISED = 4
    """401 or 403."""
    CLIENT_ERROR = 5
    """Any other 4xx, and redirects, which are never followed."""
    SERVER_ERROR = 6
    """Any other 5xx."""
    CONNECT_FAILED = 7
    """No connection in time, or refused."""
    RESET = 8
    """The connection ended before an answer began."""
    CUT = 9
    """The answer began and did not end properly."""
    ERROR_EVENT = 10
    """The stream carried an error in place of its end."""
    TIMEOUT = 11
    """The whole took too long."""
    STALL = 12
    """Silence in the middle of an answer."""
    MALFORMED = 13
    """Not HTTP, or not an answer of the API."""
    ABANDONED = 14
    """Still running, or (with no `sent`) still waiting for a client, when the test ended."""


FAILURES = [o for o in Outcome if o not in {Outcome.OK, Outcome.CANCELLED, Outcome.ABANDONED}]
DEAD = {Outcome.CONNECT_FAILED, Outcome.RESET, Outcome.TIMEOUT, Outcome.STALL}
"""What a target that is gone looks like."""

COLUMNS = {
    "intended": "d",
    "due": "d",
    "sent": "d",
    "first": "d",
    "last": "d",
    "end": "d",
    "prompt_tokens": "i",
    "output_tokens": "i",
    "cached_tokens": "i",
    "gaps": "I",
    "type": "H",
    "key": "H",
    "status": "H",
    "outcome": "B",
    "slow": "B",
    "redialled": "B",
}
"""Names and array type codes. Times are seconds since the start of the run, NaN where there is none.

`due` is when the generator could have sent it: the intended start, or later when all clients were busy. Token
counts are -1 where the server gave no usage. `gaps` counts the inter-token gaps that belong to the record.
"""


class Record(msgspec.Struct):
    """One finished request; see `COLUMNS`."""

    intended: float
    due: float
    sent: float
    first: float
    last: float
    end: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    gaps: int
    type: int
    key: int
    status: int
    outcome: int
    slow: int
    redialled: int


class Records:
    """Columns of records, and the inter-token gaps (seconds) of all of them in one row."""

    def __init__(self) -> None:
        self.columns: dict[str, array[Any]] = {name: array(code) for name, code in COLUMNS.items()}
        self.gaps: array[float] = array("f")

    def __len__(self) -> int:
        return len(self.columns["intended"])

    def add(self, record: Record, gaps: "array[float]") -> None:
        """Append a record with its gaps."""
        for name, column in self.columns.items():
            column.append(getattr(record, name))
        self.gaps.extend(gaps)

    def pack(self) -> Mapping[str, bytes]:
        """The columns as bytes, for `extend`."""
        packed = {name: column.tobytes() for name, column in self.columns.items()}
        return {**packed, "all_gaps": self.gaps.tobytes()}

    def extend(self, packed: Mapping[str, bytes]) -> None:
        """Append what another process packed."""
        for name, column in self.columns.items():
            column.frombytes(packed[name])
        self.gaps.frombytes(packed["all_gaps"])

    def __iter__(self) -> Iterator[Record]:
        for values in zip(*self.columns.values(), strict=True):
            yield Record(*values)

    def with_gaps(self, start: int = 0, gap_start: int = 0) -> "Iterator[tuple[Record, array[float]]]":
        """Records from `start` on with their gaps, which begin at `gap_start`."""
        at = gap_start
        rows = zip(*(column[start:] for column in self.columns.values()), strict=True)
        for values in rows:
            record = Record(*values)
            yield record, self.gaps[at : at + record.gaps]
            at += record.gaps
