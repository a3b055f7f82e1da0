"""XID errors as NVML reports them, from a stand-in for its event set."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from daemons.gpu_exporter.nvml import Gpu
from daemons.gpu_exporter.xid_events import XidEvents

XID = pynvml.nvmlEventTypeXidCriticalError


def test_a_gpu_that_is_gone_does_not_silence_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that fell off the bus cannot tell its address; the kernel's log names it."""
    queue = [(1, 79), (0, 31)]

    def wait(_set: Any, _timeout: int) -> Any:
        if not queue:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        device, xid = queue.pop(0)
        return SimpleNamespace(device=device, eventType=XID, eventData=xid)

    def pci(device: int) -> Any:
        if device == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(busId="00000000:3B:00.0")

    monkeypatch.setattr(pynvml, "nvmlDeviceGetSupportedEventTypes", lambda _: XID)
    monkeypatch.setattr(pynvml, "nvmlEventSetCreate", object)
    monkeypatch.setattr(pynvml, "nvmlDeviceRegisterEvents", lambda *_: None)
    monkeypatch.setattr(pynvml, "nvmlEventSetWait_v2", wait)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPciInfo", pci)
    events = XidEvents()
    events.watch(Gpu(handle=0, index=0, uuid="GPU-0"))
    assert [(event.pci, event.xid) for event in events.drain()] == [("00000000:3b:00.0", 31)]
    assert events.watching
