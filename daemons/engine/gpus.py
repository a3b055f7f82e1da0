"""The GPUs of this machine: found by index, PCI address or UUID, and what lies near them."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pynvml

from daemons.runtime.errors import EXIT_CONFIG, Fatal

_PCI_DEVICES = Path("/sys/bus/pci/devices")
_WAYS = {
    pynvml.NVML_TOPOLOGY_INTERNAL: "on one board",
    pynvml.NVML_TOPOLOGY_SINGLE: "PIX",
    pynvml.NVML_TOPOLOGY_MULTIPLE: "PXB",
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB",
    pynvml.NVML_TOPOLOGY_NODE: "NODE",
    pynvml.NVML_TOPOLOGY_SYSTEM: "SYS",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        index: NVML's index, which need not be the device's minor number.
        pci: address as sysfs writes it, for example ``0000:3b:00.0``.
        memory_bytes: what NVML calls total; less than printed on the box, more so with ECC.
        cpus: processors on the GPU's NUMA node; empty when the machine does not say.
    """

    index: int
    uuid: str
    pci: str
    name: str
    memory_bytes: int
    cpus: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Link:
    """The way between two GPUs.

    Attributes:
        one, other: their indices.
        way: as ``nvidia-smi topo -m`` writes it, for example ``PHB``; ``NVLink`` where there is one.
        reads, writes: whether the driver claims that each reads and writes the other's memory.
    """

    one: int
    other: int
    way: str
    reads: bool
    writes: bool

    def __str__(self) -> str:
        access = "peer access" if self.reads and self.writes else "no peer access"
        return f"GPU {self.one} - GPU {self.other}: {self.way}, {access} claimed"


class Inventory(Protocol):
    """The seam to NVML."""

    def gpus(self) -> list[Gpu]:
        """Every GPU.

        Raises:
            Fatal: there is no driver, or it does not answer.
        """

    def processes(self, uuid: str) -> set[int]:
        """Processes that hold memory on a GPU; empty when that cannot be told."""

    def links(self, uuids: Sequence[str]) -> list[Link]:
        """The way between each two of these GPUs; and what the driver claims of peer access on it.

        Raises:
            Fatal: the driver does not answer.
        """


class NvmlInventory:
    """`Inventory` by NVML."""

    def gpus(self) -> list[Gpu]:
        """Every GPU that NVML lists."""
        with _nvml():
            return [_describe(index) for index in range(pynvml.nvmlDeviceGetCount())]

    def processes(self, uuid: str) -> set[int]:
        """Processes that hold memory on a GPU."""
        with contextlib.suppress(Fatal), _nvml():
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            return {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        return set()

    def links(self, uuids: Sequence[str]) -> list[Link]:
        """The way between each two GPUs, and what the driver claims of peer access on it."""
        with _nvml():
            handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
            return [_link(one, other) for one, other in itertools.combinations(handles, 2)]


@contextlib.contextmanager
def _nvml() -> Iterator[None]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise Fatal(
            f"the NVIDIA driver is not there or does not answer ({error}): check nvidia-smi"
        ) from None
    try:
        yield
    except pynvml.NVMLError as error:
        raise Fatal(f"the NVIDIA driver reports a fault ({error}): check nvidia-smi") from None
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _describe(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    pci = short_pci(_text(pynvml.nvmlDeviceGetPciInfo(handle).busId))
    return Gpu(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        pci=pci,
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        cpus=near_cpus(_PCI_DEVICES / pci),
    )


def _link(one: Any, other: Any) -> Link:
    def claimed(kind: int) -> bool:
        with contextlib.suppress(pynvml.NVMLError):
            return all(
                pynvml.nvmlDeviceGetP2PStatus(first, second, kind) == pynvml.NVML_P2P_STATUS_OK
                for first, second in ((one, other), (other, one))
            )
        return False

    way = "unknown"
    # Virtual machines may not tell.
    with contextlib.suppress(pynvml.NVMLError):
        way = _WAYS.get(pynvml.nvmlDeviceGetTopologyCommonAncestor(one, other), way)
    return Link(
        one=pynvml.nvmlDeviceGetIndex(one),
        other=pynvml.nvmlDeviceGetIndex(other),
        way="NVLink" if claimed(pynvml.NVML_P2P_CAPS_INDEX_NVLINK) else way,
        reads=claimed(pynvml.NVML_P2P_CAPS_INDEX_READ),
        writes=claimed(pynvml.NVML_P2P_CAPS_INDEX_WRITE),
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def short_pci(address: str) -> str:
    """NVML's ``00000000:3B:00.0`` and a user's ``3b:00.0`` as sysfs writes it: ``0000:3b:00.0``."""
    parts = address.strip().lower().split(":")
    domain = parts[0][-4:].rjust(4, "0") if len(parts) == 3 else "0000"
    return ":".join([domain, *parts[-2:]])


def near_cpus(device: Path) -> frozenset[int]:
    """The processors near a PCI device; empty on machines with one NUMA node, where sysfs says -1."""
    try:
        if int((device / "numa_node").read_text()) < 0:
            return frozenset()
        return parse_cpu_list((device / "local_cpulist").read_text())
    except (OSError, ValueError):
        return frozenset()


def parse_cpu_list(text: str) -> frozenset[int]:
    """``0-3,8`` → 0, 1, 2, 3, 8 (cpuset(7)).

    Raises:
        ValueError: malformed.
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def resolve(names: Sequence[int | str], gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """The GPUs that the key `gpus` names, in its order.

    Raises:
        Fatal: with a line for each name that is no GPU of this machine, or names one twice.
    """
    there = ", ".join(f"{gpu.index} = {gpu.pci} = {gpu.uuid} ({gpu.name})" for gpu in gpus) or "none"
    found: list[Gpu] = []
    faults: list[str] = []
    for name in names:
        gpu = next((gpu for gpu in gpus if _is_named(gpu, name)), None)
        if gpu is None:
            faults.append(f"gpus: {name} is no GPU of this machine; there are: {there}")
        elif gpu in found:
            faults.append(f"gpus: {name} is the same GPU as one named before")
        else:
            found.append(gpu)
    if faults:
        raise Fatal("\n".join(faults), EXIT_CONFIG)
    return tuple(found)


def _is_named(gpu: Gpu, name: int | str) -> bool:
    text = str(name)
    if text.isdecimal():
        return gpu.index == int(text)
    if text.lower().startswith("gpu-"):
        return gpu.uuid.lower() == text.lower()
    return short_pci(text) == gpu.pci


def shared_too_far(
    mine: Sequence[Gpu], share: float, others: Sequence[tuple[str, Sequence[Gpu], float]]
) -> str:
    """Why this engine and the others of this machine do not fit together; empty when they do.

    Args:
        mine: this engine's GPUs.
        share: of each that it claims (`gpu_memory_utilization`).
        others: name, GPUs and share of each other engine.
    """
    for gpu in mine:
        claims = [(name, claim) for name, theirs, claim in others if gpu in theirs]
        total = share + sum(claim for _, claim in claims)
        if total > 1.0 + 1e-9:
            whose = ", ".join(f"{name} {claim:.2f}" for name, claim in claims)
            return (
                f"GPU {gpu.index} ({gpu.uuid}) is claimed to {total:.2f} of its memory: "
                f"this engine {share:.2f}, {whose}; lower gpu_memory_utilization or take another GPU"
            )
    return ""
