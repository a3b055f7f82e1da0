"""XID errors as NVML reports them: an event set of all GPUs, emptied once a collection without waiting."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pynvml

from daemons.gpu_exporter.nvml import Gpu, pci_address
from daemons.gpu_exporter.snapshot import XidEvent

_MAX_PER_ROUND = 256
_ENDED = (pynvml.NVML_ERROR_TIMEOUT, pynvml.NVML_ERROR_NOT_FOUND)


class XidEvents:
    """NVML's event set.

    Attributes:
        watching: whether at least one GPU reports its XID errors this way.
    """

    def __init__(self) -> None:
        self.watching = False
        self._set: Any = None

    def watch(self, gpu: Gpu) -> None:
        """Begin to listen to `gpu`, if it can report."""
        kinds = gpu.ask(pynvml.nvmlDeviceGetSupportedEventTypes)
        if kinds is not None and kinds & pynvml.nvmlEventTypeXidCriticalError:
            if self._set is None:
                self._set = gpu.attempt(pynvml.nvmlEventSetCreate)
            if self._set is not None:
                before = len(gpu.errors)
                gpu.ask(pynvml.nvmlDeviceRegisterEvents, pynvml.nvmlEventTypeXidCriticalError, self._set)
                self.watching |= len(gpu.errors) == before
        gpu.errors.clear()

    def drain(self) -> Iterator[XidEvent]:
        """What happened since the last time; what NVML cannot name is left to the kernel log."""
        for _ in range(_MAX_PER_ROUND if self._set is not None else 0):
            try:
                event = pynvml.nvmlEventSetWait_v2(self._set, 0)
            except pynvml.NVMLError as error:
                if error.value not in _ENDED:
                    self.watching = False
                return
            pci = _pci(event.device)
            if pci is not None and event.eventType & pynvml.nvmlEventTypeXidCriticalError:
                yield XidEvent(at=time.time(), pci=pci, xid=int(event.eventData))

    def close(self) -> None:
        """Free the set; never raises."""
        if self._set is not None:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._set)
            self._set = None


def _pci(handle: Any) -> str | None:
    """The address of a GPU; None when it does not even tell that, as one that fell off the bus."""
    try:
        return pci_address(pynvml.nvmlDeviceGetPciInfo(handle).busId)
    except pynvml.NVMLError:
        return None
