"""Which release's families to show."""

from collections.abc import Callable

from daemons.simulator.metrics.exposition import Release
from daemons.simulator.metrics.release_0_6_6 import Release066
from daemons.simulator.metrics.release_0_32 import Release032

_RELEASES: dict[str, Callable[[int], Release]] = {"0.32": Release032, "0.6.6": Release066}


def release(name: str, max_model_len: int) -> Release:
    """The families of the release `name`, one of ``options.METRIC_RELEASES``."""
    return _RELEASES[name](max_model_len)
