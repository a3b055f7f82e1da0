"""From what driver, bus and a trial say to vLLM's settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from daemons.engine.gpus import Link
from daemons.engine.peers.bus import Bus
from daemons.engine.peers.trial import Outcome
from daemons.runtime.errors import Fatal

WITHOUT_PEERS = {"NCCL_P2P_DISABLE": "1"}
"""Has NCCL send through host memory."""

Trial = Callable[[Mapping[str, str]], Outcome]
"""Tries an all-reduce with these additions to the environment."""


@dataclass(frozen=True, slots=True)
class Peers:
    """How an engine's GPUs reach each other.

    Attributes:
        direct: whether they may use each other's memory.
        reason: why, in one sentence.
        facts: what was found, for the log and a metric.
        environment: NCCL's settings.
    """

    direct: bool = True
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


ALONE = Peers()
"""Of an engine with a GPU for itself."""


def judge(links: Sequence[Link], bus: Bus, trial: Trial) -> Peers:
    """Whether peer access may be used: only where the driver claims it and an all-reduce shows it.

    Raises:
        Fatal: the GPUs do not even add up through host memory.
    """
    facts = {"links": "; ".join(map(str, links)), "iommu": bus.iommu, "acs": bus.acs}
    claimed = all(link.reads and link.writes for link in links)
    if claimed:
        direct = trial({})
        if direct.worked is None:
            reason = f"the driver claims peer access; that could not be tried ({direct.said})"
            return Peers(True, reason, facts | {"all_reduce": "not tried"})
        if direct.worked:
            return Peers(True, "an all-reduce by peer access works", facts | {"all_reduce": direct.said})
        reason = (
            f"the driver claims peer access, but {direct.said} (IOMMU {bus.iommu}, ACS {bus.acs}): it is not "
            "used; with ACS off in the bridges and the IOMMU off or in pass-through it may work"
        )
    else:
        reason = "the driver says that these GPUs have no peer access"
    through_host = trial(WITHOUT_PEERS)
    if through_host.worked is False:
        raise Fatal(
            f"these GPUs cannot work together ({facts['links']}; IOMMU {bus.iommu}; ACS {bus.acs}): "
            f"{through_host.said}, even through host memory; set tensor_parallel_size: 1, or see dmesg"
        )
    return Peers(
        False, reason, facts | {"all_reduce": f"through host memory: {through_host.said}"}, WITHOUT_PEERS
    )
