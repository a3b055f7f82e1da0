"""Which GPUs there should be, and which there are: a GPU that vanishes stays visible as missing."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.snapshot import GpuStatus

UP = gauge("gpu_up", "Whether a GPU answers, for each one seen before or expected")
FAULT = gauge("gpu_fault", "Always 1, for each GPU that does not answer, with the reason")
PRESENT = gauge("gpu_present", "Number of GPUs that answer")
EXPECTED = gauge("gpu_expected", "Number of GPUs that the settings say this machine has")

MISSING = "missing"


class Inventory:
    """GPUs by UUID, from the settings and from what was seen so far.

    Attributes:
        version: grows with every change.
    """

    def __init__(self, expected: int | Sequence[str] | None) -> None:
        self._wanted = tuple(expected) if isinstance(expected, Sequence) else ()
        self._number = expected if isinstance(expected, int) else len(self._wanted) or None
        self._seen: dict[str, GpuStatus] = {}
        self._told: tuple[GpuStatus, ...] = ()
        self._now: tuple[GpuStatus, ...] = ()
        self.version = 0

    def update(self, gpus: Iterable[GpuStatus]) -> None:
        """Take over what NVML lists now."""
        told = tuple(gpus)
        if told == self._told:
            return
        self._told = told
        self.version += 1
        self._now = tuple(self._identified(told))
        for gpu in self._now:
            if gpu.uuid:
                self._seen[gpu.uuid] = gpu

    def _identified(self, gpus: tuple[GpuStatus, ...]) -> Iterator[GpuStatus]:
        """`gpus`, where one that does not tell its name is taken for the missing one of its index."""
        told = {gpu.uuid for gpu in gpus}
        for gpu in gpus:
            known = next(
                (old for old in self._seen.values() if old.index == gpu.index and old.uuid not in told), None
            )
            if gpu.uuid or known is None:
                yield gpu
            else:
                yield msgspec.structs.replace(known, fault=gpu.fault)

    @property
    def present(self) -> int:
        """How many GPUs answer."""
        return sum(1 for gpu in self._now if not gpu.fault)

    @property
    def complete(self) -> bool:
        """Whether every GPU expected or seen before answers."""
        return self.present >= max(self._number or 0, len(self._seen)) and not any(self._unseen())

    def by_pci(self) -> dict[str, GpuStatus]:
        """Every GPU seen so far, by PCI address."""
        return {gpu.pci: gpu for gpu in self._seen.values() if gpu.pci}

    def expected(self) -> Iterator[Sample]:
        """What the settings say, whether NVML answers or not."""
        if self._number is not None:
            yield EXPECTED(self._number)

    def samples(self) -> Iterator[Sample]:
        """What is there, by the last answer of NVML."""
        now = {gpu.uuid for gpu in self._now}
        missing = [
            GpuStatus(index=gpu.index, uuid=gpu.uuid, fault=MISSING)
            for uuid, gpu in self._seen.items()
            if uuid not in now
        ]
        everything = [*self._now, *missing, *self._unseen()]
        yield PRESENT(self.present)
        for gpu in everything:
            yield UP(int(not gpu.fault), *_labels(gpu))
        for gpu in everything:
            if gpu.fault:
                yield FAULT(1, *_labels(gpu), ("reason", gpu.fault))

    def _unseen(self) -> Iterator[GpuStatus]:
        """GPUs that the settings name and nobody has seen."""
        for wanted in self._wanted:
            if not any(_is_named(gpu, wanted) for gpu in self._seen.values()):
                yield GpuStatus(index=-1, uuid=wanted, fault=MISSING)


def _is_named(gpu: GpuStatus, name: str) -> bool:
    """Whether `name` is the GPU's UUID or its PCI address, with a domain of 4 or 8 digits."""
    return name.lower() in {gpu.uuid.lower(), gpu.pci, gpu.pci.removeprefix("0000")}


def _labels(gpu: GpuStatus) -> tuple[tuple[str, str], ...]:
    return (("gpu", str(gpu.index) if gpu.index >= 0 else ""), ("uuid", gpu.uuid))
