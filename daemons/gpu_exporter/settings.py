"""``gpu-exporter.yaml``."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from daemons.runtime.settings import Settings
from daemons.runtime.sockets import Address


class KernelLog(StrEnum):
    """Where XID lines of the kernel are read."""

    AUTO = "auto"
    KMSG = "kmsg"
    JOURNAL = "journal"
    OFF = "off"


Count = Annotated[int, Field(ge=0, strict=True)]
Name = Annotated[str, Field(min_length=1)]


class GpuExporterSettings(Settings):
    """The GPU exporter's settings; every key has a default, so that an empty file is a good one."""

    listen: Address = Address(port=9101)
    """Where ``/metrics`` is served."""
    interval: float = Field(default=1.0, ge=0.05, le=60)
    """Seconds between two collections."""
    slow_interval: float = Field(default=10.0, ge=0.05, le=3600)
    """Seconds between two readings of what hardly changes or is slow to read (limits, ECC, PCIe, NVLink)."""
    stale_after: float = Field(default=5.0, ge=0.1, le=600)
    """GPU series vanish when the last collection is older than this many seconds."""
    worker_timeout: float = Field(default=10.0, ge=0.1, le=600)
    """A worker that delivers nothing for this many seconds is taken for hung and replaced."""
    start_timeout: float = Field(default=60.0, ge=0.1, le=600)
    """The same for a fresh worker: opening NVML takes seconds a GPU without persistence mode."""
    release_hold: float = Field(default=30.0, ge=0, le=3600)
    """Seconds a reload (SIGHUP) keeps NVML closed, so that a GPU can be reset or the driver replaced."""
    expected_gpus: Count | tuple[Name, ...] | None = None
    """GPUs this machine should have: how many, or their UUIDs or PCI addresses; fewer is shown."""
    kernel_log: KernelLog = KernelLog.AUTO
    """Where XID lines of the kernel are read: auto (kmsg, else the journal), kmsg, journal, or off."""
    max_units: int = Field(default=32, ge=1, le=1000)
    """Units shown by name per GPU; what further ones use is summed as ``other``."""
    dcgm_names: bool = False
    """Also serve the ``DCGM_FI_DEV_*`` names of dcgm-exporter, so that existing dashboards work."""

    @field_validator("expected_gpus")
    @classmethod
    def _different(cls, expected: int | tuple[str, ...] | None) -> int | tuple[str, ...] | None:
        if isinstance(expected, tuple) and len({name.lower() for name in expected}) < len(expected):
            raise ValueError("names a GPU twice")
        return expected

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.stale_after < 2 * self.interval:
            raise ValueError(
                f"stale_after ({self.stale_after:g} s) must be at least twice interval ({self.interval:g} s)"
            )
        if self.worker_timeout < 2 * self.interval:
            raise ValueError(
                f"worker_timeout ({self.worker_timeout:g} s) must be at least twice interval "
                f"({self.interval:g} s)"
            )
        return self
