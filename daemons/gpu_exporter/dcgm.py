"""The field names of dcgm-exporter, so that dashboards made for it work.

Names, types and units as in the ``default-counters.csv`` of dcgm-exporter: percent, MiB, MHz, millijoules.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pynvml

from daemons.gpu_exporter.collectors import (
    clock_events,
    clocks,
    ecc,
    fan,
    memory,
    pcie,
    power,
    rows,
    temperature,
    utilization,
)
from daemons.gpu_exporter.families import Family, Kind, Labels, Sample
from daemons.gpu_exporter.nvml import Gpu

XID = Family("DCGM_FI_DEV_XID_ERRORS", Kind.GAUGE, "Value of the last XID error encountered.")


@dataclass(frozen=True, slots=True)
class _Field:
    source: Family
    labels: Labels
    family: Family
    factor: float


def _field(source: Family, name: str, text: str, factor: float = 1, *labels: tuple[str, str]) -> _Field:
    return _Field(source, labels, Family(f"DCGM_FI_DEV_{name}", source.kind, text), factor)


def _ecc(name: str, text: str, error: str, counter: str) -> _Field:
    return _field(ecc.ERRORS, name, text, 1, ("error", error), ("counter", counter))


_PERCENT, _PER_MEBI, _PER_MEGA, _PER_KILO, _MILLI, _NANO = 100, 1 / 1048576, 1e-6, 1e-3, 1000, 1e9

_FIELDS = (
    _field(clocks.CLOCK, "SM_CLOCK", "SM clock frequency (in MHz).", _PER_MEGA, ("clock", "sm")),
    _field(clocks.CLOCK, "MEM_CLOCK", "Memory clock frequency (in MHz).", _PER_MEGA, ("clock", "memory")),
    _field(temperature.CORE, "GPU_TEMP", "GPU temperature (in C)."),
    _field(temperature.MEMORY, "MEMORY_TEMP", "Memory temperature (in C)."),
    _field(power.USAGE, "POWER_USAGE", "Power draw (in W)."),
    _field(power.ENERGY, "TOTAL_ENERGY_CONSUMPTION", "Total energy consumption since boot (in mJ).", _MILLI),
    # Counters to dcgm-exporter, but NVML tells rates.
    _field(
        pcie.THROUGHPUT,
        "PCIE_TX_THROUGHPUT",
        "PCIe traffic transmitted (in KB per second).",
        _PER_KILO,
        ("direction", "transmit"),
    ),
    _field(
        pcie.THROUGHPUT,
        "PCIE_RX_THROUGHPUT",
        "PCIe traffic received (in KB per second).",
        _PER_KILO,
        ("direction", "receive"),
    ),
    _field(pcie.REPLAYS, "PCIE_REPLAY_COUNTER", "Total number of PCIe retries."),
    _field(utilization.UTILIZATION, "GPU_UTIL", "GPU utilization (in %).", _PERCENT),
    _field(utilization.MEMORY_BUSY, "MEM_COPY_UTIL", "Memory utilization (in %).", _PERCENT),
    _field(utilization.ENCODER, "ENC_UTIL", "Encoder utilization (in %).", _PERCENT),
    _field(utilization.DECODER, "DEC_UTIL", "Decoder utilization (in %).", _PERCENT),
    _field(memory.TOTAL, "FB_TOTAL", "Framebuffer memory total (in MiB).", _PER_MEBI),
    _field(memory.FREE, "FB_FREE", "Framebuffer memory free (in MiB).", _PER_MEBI),
    _field(memory.USED, "FB_USED", "Framebuffer memory used (in MiB).", _PER_MEBI),
    _field(memory.RESERVED, "FB_RESERVED", "Framebuffer memory reserved (in MiB).", _PER_MEBI),
    _ecc("ECC_SBE_VOL_TOTAL", "Total number of single-bit volatile ECC errors.", "corrected", "volatile"),
    _ecc("ECC_DBE_VOL_TOTAL", "Total number of double-bit volatile ECC errors.", "uncorrected", "volatile"),
    _ecc("ECC_SBE_AGG_TOTAL", "Total number of single-bit persistent ECC errors.", "corrected", "aggregate"),
    _ecc(
        "ECC_DBE_AGG_TOTAL", "Total number of double-bit persistent ECC errors.", "uncorrected", "aggregate"
    ),
    _field(
        rows.REMAPPED,
        "UNCORRECTABLE_REMAPPED_ROWS",
        "Number of remapped rows for uncorrectable errors",
        1,
        ("error", "uncorrected"),
    ),
    _field(
        rows.REMAPPED,
        "CORRECTABLE_REMAPPED_ROWS",
        "Number of remapped rows for correctable errors",
        1,
        ("error", "corrected"),
    ),
    _field(rows.REMAP_FAILURE, "ROW_REMAP_FAILURE", "Whether remapping of rows has failed"),
    _field(rows.REMAP_PENDING, "ROW_REMAP_PENDING", "Whether remapping of rows is pending"),
    _field(
        rows.RETIRED,
        "RETIRED_SBE",
        "Total number of retired pages due to single-bit errors.",
        1,
        ("cause", "single_bit"),
    ),
    _field(
        rows.RETIRED,
        "RETIRED_DBE",
        "Total number of retired pages due to double-bit errors.",
        1,
        ("cause", "double_bit"),
    ),
    _field(rows.RETIRED_PENDING, "RETIRED_PENDING", "Total number of pages pending retirement."),
    _field(
        clock_events.LIMITED,
        "POWER_VIOLATION",
        "Throttling duration due to power constraints (in ns).",
        _NANO,
        ("policy", "power"),
    ),
    _field(
        clock_events.LIMITED,
        "THERMAL_VIOLATION",
        "Throttling duration due to thermal constraints (in ns).",
        _NANO,
        ("policy", "thermal"),
    ),
    _field(fan.SPEED, "FAN_SPEED", "Fan speed (in %).", _PERCENT, ("fan", "0")),
)

_BY_SOURCE = {(field.source, field.labels): field for field in _FIELDS}
FAMILIES = (*(field.family for field in _FIELDS), XID)


def translate(samples: Iterable[Sample]) -> list[Sample]:
    """Those of `samples` that dcgm-exporter has, in its names and units."""
    return [
        Sample(field.family, round(sample.value * field.factor, 6))
        for sample in samples
        if (field := _BY_SOURCE.get((sample.family, sample.labels))) is not None
    ]


def labels(gpu: Gpu, hostname: str, driver: str) -> Labels:
    """The labels that dcgm-exporter puts on every series."""
    minor = gpu.ask(pynvml.nvmlDeviceGetMinorNumber)
    gpu.errors.clear()
    return (
        ("gpu", str(gpu.index)),
        ("UUID", gpu.uuid),
        ("pci_bus_id", gpu.pci.upper()),
        ("device", "" if minor is None else f"nvidia{minor}"),
        ("modelName", gpu.name),
        ("Hostname", hostname),
        ("DCGM_FI_DRIVER_VERSION", driver),
    )
