"""Which release's families to show."""

from daemons.simulator.metrics.exposition import Release
from daemons.simulator.metrics.release_0_32 import Release032


def release(name: str, max_model_len: int) -> Release:
    """The families of the release `name`."""
    return Release032(max_model_len)
