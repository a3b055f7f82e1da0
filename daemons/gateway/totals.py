"""Counters over several workers: nothing is lost or counted twice when one takes over from another.

A worker shows its own counts and the latest that each of its draining predecessors told of theirs. What a
predecessor told last, at its end, becomes its own.
"""

from collections.abc import Callable, Iterable
from time import monotonic

import msgspec
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemons.gateway.metrics import Metrics, State
from daemons.gateway.succession import Word

SECTION = "metrics"
_SILENT = 15.0
"""Seconds after which a worker that drained and told every second is taken for dead."""


class _Origin(msgspec.Struct):
    number: int
    state: State


class _Told(msgspec.Struct):
    own: State
    origins: dict[str, _Origin]
    ended: list[str]


_decode = msgspec.json.Decoder(_Told).decode


class Totals(Collector):
    """`Metrics` of this worker together with those of the workers that drain."""

    def __init__(self, own: Metrics, clock: Callable[[], float] = monotonic) -> None:
        self._own = own
        self._clock = clock
        self._origins: dict[str, _Origin] = {}
        self._heard_at: dict[str, float] = {}
        # Whose counts are in `own` by now.
        self._ended: set[str] = set()

    def telling(self) -> msgspec.Raw:
        """What this worker says of itself and of those it heard from."""
        told = _Told(self._own.state(), self._origins, sorted(self._ended))
        return msgspec.Raw(msgspec.json.encode(told))

    def hear(self, word: Word) -> None:
        """Take a telling of a worker that drains."""
        told = _decode(word.sections[SECTION])
        # Whoever is in its own counts by now must not be counted beside them.
        for name in told.ended:
            self._origins.pop(name, None)
            self._heard_at.pop(name, None)
            self._ended.add(name)
        for name, origin in told.origins.items():
            self._note(name, origin)
        self._note(word.worker, _Origin(word.number, told.own))
        if word.last:
            self._adopt(word.worker)

    def _note(self, name: str, origin: _Origin) -> None:
        known = self._origins.get(name)
        if name not in self._ended and (known is None or known.number < origin.number):
            self._origins[name] = origin
            self._heard_at[name] = self._clock()

    def _adopt(self, name: str) -> None:
        """Count for good what a worker told last; it has nothing in flight any more."""
        origin = self._origins.pop(name, None)
        if origin is not None:
            idle = [msgspec.structs.replace(series, in_flight=0) for series in origin.state.series]
            self._own.add(msgspec.structs.replace(origin.state, series=idle))
            self._ended.add(name)
            del self._heard_at[name]

    def collect(self) -> Iterable[Metric]:
        """Every family, summed over the workers."""
        silent = [name for name, heard in self._heard_at.items() if self._clock() - heard > _SILENT]
        for name in silent:
            # Killed while it drained.
            self._adopt(name)
        if not self._origins:
            return self._own.collect()
        together = Metrics()
        for state in (self._own.state(), *(origin.state for origin in self._origins.values())):
            together.add(state)
        return together.collect()
