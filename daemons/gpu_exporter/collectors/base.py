"""What a collector is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from daemons.gpu_exporter.families import Family, Sample
from daemons.gpu_exporter.nvml import Gpu


@dataclass(frozen=True, slots=True)
class Collector:
    """Reads some families of one GPU.

    Attributes:
        name: the ``collector`` label of the exporter's metrics about itself.
        families: everything `read` may yield.
        read: yields what this GPU supports; a value that cannot be had is left out, never replaced.
        slow: read at the slow interval: what hardly changes, or costs much.
        occasional: families that may be absent on a GPU that supports them, for want of something to show.
    """

    name: str
    families: tuple[Family, ...]
    read: Callable[[Gpu], Iterable[Sample]]
    slow: bool = False
    occasional: frozenset[Family] = frozenset()


def ratio(percent: float | None) -> float | None:
    """A percentage as a ratio; None for what is none, such as the markers some drivers leave in the field."""
    return percent / 100 if percent is not None and 0 <= percent <= 100 else None
