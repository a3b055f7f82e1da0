"""Modes and states of the GPU as a whole."""

import ctypes
from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

PERFORMANCE = gauge("gpu_performance_state", "Performance state: 0 is the fastest, 15 the slowest")
PERSISTENCE = gauge("gpu_persistence_mode", "Whether the driver stays loaded while nobody uses the GPU")
RECOVERY = gauge(
    "gpu_recovery_action",
    "What the driver asks for to recover the GPU: 1 for the action that holds, 0 for others",
)
FABRIC = gauge(
    "gpu_fabric_state", "Registration with the NVLink fabric: 1 for the state that holds, 0 for others"
)

_UNKNOWN_PSTATE = 32
_ACTIONS = (
    ("none", pynvml.NVML_GPU_RECOVERY_ACTION_NONE),
    ("gpu_reset", pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET),
    ("node_reboot", pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT),
    ("drain_p2p", pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P),
    ("drain_and_reset", pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET),
)
_FABRIC = (
    ("not_started", pynvml.NVML_GPU_FABRIC_STATE_NOT_STARTED),
    ("in_progress", pynvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS),
    ("completed", pynvml.NVML_GPU_FABRIC_STATE_COMPLETED),
)


def read(gpu: Gpu) -> Iterator[Sample]:
    """State 32 is NVML's way to say that it does not know."""
    state = gpu.ask(pynvml.nvmlDeviceGetPerformanceState)
    if state is not None and state < _UNKNOWN_PSTATE:
        yield PERFORMANCE(state)
    (action,) = gpu.fields([pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if action is not None:
        # An action newer than this list still shows: as a set without a 1 for "none".
        yield from (RECOVERY(int(action == code), ("action", name)) for name, code in _ACTIONS)


def read_modes(gpu: Gpu) -> Iterator[Sample]:
    """What changes with the operator's settings or once after boot."""
    if (mode := gpu.ask(pynvml.nvmlDeviceGetPersistenceMode)) is not None:
        yield PERSISTENCE(mode)
    fabric = pynvml.c_nvmlGpuFabricInfo_v2_t()
    if gpu.ask(pynvml.nvmlDeviceGetGpuFabricInfoV, ctypes.byref(fabric)) is not None and fabric.state:
        yield from (FABRIC(int(fabric.state == code), ("state", name)) for name, code in _FABRIC)


COLLECTOR = Collector("state", (PERFORMANCE, RECOVERY), read)
MODES = Collector("modes", (PERSISTENCE, FABRIC), read_modes, slow=True)
