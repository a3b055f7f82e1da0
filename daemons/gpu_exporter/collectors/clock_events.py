"""Why the clocks are held down ("throttling"), now and in total."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, counter, gauge
from daemons.gpu_exporter.nvml import Gpu

ACTIVE = gauge("gpu_clock_event_active", "Whether this reason holds the clocks down now; one series a reason")
LIMITED = counter(
    "gpu_clock_limited_seconds_total", "Time the clocks were held down since the driver was loaded, by policy"
)

_REASONS = (
    ("gpu_idle", pynvml.nvmlClocksEventReasonGpuIdle),
    ("application_clocks", pynvml.nvmlClocksEventReasonApplicationsClocksSetting),
    ("sw_power_cap", pynvml.nvmlClocksEventReasonSwPowerCap),
    ("hw_slowdown", pynvml.nvmlClocksEventReasonHwSlowdown),
    ("sync_boost", pynvml.nvmlClocksEventReasonSyncBoost),
    ("sw_thermal_slowdown", pynvml.nvmlClocksEventReasonSwThermalSlowdown),
    ("hw_thermal_slowdown", pynvml.nvmlClocksEventReasonHwThermalSlowdown),
    ("hw_power_brake", pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown),
    ("display_clocks", pynvml.nvmlClocksEventReasonDisplayClockSetting),
)
# NVML_FI_DEV_CLOCKS_EVENT_REASON_* beyond these were renumbered between NVML 12 and 13 (251 became 269), so
# that an old driver would answer another question; the perf-policy fields have kept their numbers.
_POLICIES = (
    ("power", pynvml.NVML_FI_DEV_PERF_POLICY_POWER),
    ("thermal", pynvml.NVML_FI_DEV_PERF_POLICY_THERMAL),
    ("sync_boost", pynvml.NVML_FI_DEV_PERF_POLICY_SYNC_BOOST),
    ("board_limit", pynvml.NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT),
    ("low_utilization", pynvml.NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION),
    ("reliability", pynvml.NVML_FI_DEV_PERF_POLICY_RELIABILITY),
)
_NANO = 1_000_000_000


def read(gpu: Gpu) -> Iterator[Sample]:
    """Drivers before 535 know the same calls by their old names."""
    supported = gpu.ask(pynvml.nvmlDeviceGetSupportedClocksEventReasons)
    active = gpu.ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
    if supported is None:
        supported = gpu.ask(pynvml.nvmlDeviceGetSupportedClocksThrottleReasons)
    if active is None:
        active = gpu.ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    if supported is not None and active is not None:
        for name, bit in _REASONS:
            if supported & bit:
                yield ACTIVE(int(bool(active & bit)), ("reason", name))


def read_totals(gpu: Gpu) -> Iterator[Sample]:
    """NVML counts nanoseconds."""
    values = gpu.fields([field for _, field in _POLICIES])
    for (name, _), value in zip(_POLICIES, values, strict=True):
        if value is not None:
            yield LIMITED(value / _NANO, ("policy", name))


COLLECTOR = Collector("clock_events", (ACTIVE,), read)
TOTALS = Collector("clock_limits_held", (LIMITED,), read_totals)
