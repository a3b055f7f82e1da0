"""Faults on command: what goes wrong, when, and for how many requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from daemons.runtime.settings import Settings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

Kind = Literal["hang", "death", "busy", "slow", "truncate", "cut", "reset", "malformed"]
_STREAM_KINDS = frozenset({"truncate", "cut", "reset", "malformed"})


class Fault(Settings):
    """One fault; the body of ``POST /sim/faults`` and, as ``NAME,key=value``, of ``--sim-fault``."""

    fault: Kind
    """hang: steps stop, counters freeze, /health stays 200. death: streams get an error event, exit code 0.
    busy: new requests get 503. slow: steps take `factor` times as long. truncate: the connection
    closes within a stream. cut: a body ends cleanly, but early. reset: the connection is reset. malformed: an
    event is no JSON."""
    after_chunks: int = Field(default=3, ge=0)
    """truncate, cut, reset, malformed: events sent before it happens."""
    requests: int | None = Field(default=None, ge=1)
    """busy, truncate, cut, reset, malformed: how many requests it hits; null hits all until cleared."""
    factor: float = Field(default=10.0, gt=0)
    """slow: how many times as long a step takes."""
    after_seconds: float = Field(default=0.0, ge=0)
    """Seconds between the command (or the end of the start-up) and the fault."""


def parse_flag(text: str) -> dict[str, str]:
    """``NAME,key=value,…`` as the fields of a `Fault`.

    Raises:
        ValueError: a part is not ``key=value``.
    """
    name, *pairs = text.split(",")
    fields = {"fault": name}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} is not key=value")
        fields[key] = value
    return fields


class Faults:
    """The faults in force."""

    def __init__(self) -> None:
        self._active: dict[str, Fault] = {}
        self._left: dict[str, int] = {}
        self.changed: Callable[[], None] = lambda: None

    def set(self, fault: Fault) -> None:
        """Put `fault` in force, in place of an earlier one of its kind."""
        self._active[fault.fault] = fault
        self._left[fault.fault] = -1 if fault.requests is None else fault.requests
        self.changed()

    def schedule(self, fault: Fault, loop: asyncio.AbstractEventLoop) -> None:
        """`set` it once its ``after_seconds`` are over."""
        if fault.after_seconds:
            loop.call_later(fault.after_seconds, self.set, fault)
        else:
            self.set(fault)

    def clear(self) -> None:
        """Everything works again (what has died stays dead)."""
        self._active.clear()
        self.changed()

    def list(self) -> list[Fault]:
        """The faults in force."""
        return list(self._active.values())

    @property
    def hanging(self) -> bool:
        """Whether the step loop stands still."""
        return "hang" in self._active

    @property
    def dying(self) -> bool:
        """Whether the engine is to die now."""
        return "death" in self._active

    @property
    def slowness(self) -> float:
        """What the duration of a step is multiplied with."""
        fault = self._active.get("slow")
        return fault.factor if fault else 1.0

    def take_busy(self) -> bool:
        """Whether this new request is to be turned away."""
        return self._take("busy") is not None

    def take_stream(self) -> Fault | None:
        """What is to go wrong with this new stream."""
        for kind in _STREAM_KINDS & self._active.keys():
            return self._take(kind)
        return None

    def _take(self, kind: str) -> Fault | None:
        fault = self._active.get(kind)
        if fault is None:
            return None
        self._left[kind] -= 1
        if not self._left[kind]:
            del self._active[kind]
        return fault
