"""The form in which a command's outcome is saved: the run's result and what was found out with it."""

from typing import Any

import msgspec

from daemons.loadtest.measure.capacity import Capacity, Verdict
from daemons.loadtest.measure.compare import Comparison
from daemons.loadtest.measure.results import Result


class Tried(msgspec.Struct, kw_only=True):
    """One rate of a capacity search, in requests a second."""

    rate: float
    verdict: Verdict
    why: str


class Search(msgspec.Struct, kw_only=True):
    """The answer of a capacity search; see `Capacity`."""

    low: float | None
    high: float | None
    note: str
    tried: list[Tried]


class Saved(Result, kw_only=True):
    """A result (which `load_result` reads again) with its comparison or capacity search."""

    comparison: Comparison | None = None
    search: Search | None = None


def saved(result: Result, comparison: Comparison | None, capacity: Capacity | None) -> Saved:
    """What to save."""
    fields: dict[str, Any] = {name: getattr(result, name) for name in Result.__struct_fields__}
    search = None
    if capacity is not None:
        tried = [Tried(rate=p.rate, verdict=p.verdict, why=p.why) for p in capacity.probes]
        search = Search(low=capacity.low, high=capacity.high, note=capacity.note, tried=tried)
    return Saved(**fields, comparison=comparison, search=search)
