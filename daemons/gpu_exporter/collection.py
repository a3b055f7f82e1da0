"""One collection after another: asks every GPU through every collector and renders what they say."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from daemons.gpu_exporter import dcgm
from daemons.gpu_exporter.collectors import Collector
from daemons.gpu_exporter.families import Family, Labels, Sample, counter, gauge, render
from daemons.gpu_exporter.nvml import Gpu, GpuGone, Nvml
from daemons.gpu_exporter.packing import pack
from daemons.gpu_exporter.rendering import Lines, document
from daemons.gpu_exporter.snapshot import GpuStatus, NvmlState, Snapshot
from daemons.gpu_exporter.xid_events import XidEvents

DRIVER = gauge("gpu_driver_info", "Versions of the driver, of NVML and of the newest CUDA it runs; always 1")
SUPPORTED = gauge(
    "gpu_exporter_field_supported", "Whether this GPU and driver offer the family named by field"
)
DURATION = gauge("gpu_exporter_collector_duration_seconds", "Time that the collector last took, all GPUs")
SUCCESS = gauge("gpu_exporter_collector_success", "Whether no call of the collector failed when it last ran")
ERRORS = counter("gpu_exporter_collector_errors_total", "NVML calls that failed, by collector and error")


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one collector last said of one GPU."""

    texts: dict[Family, str]
    failed: bool


@dataclass(slots=True)
class _Device:
    gpu: Gpu
    labels: Labels
    dcgm_labels: Labels
    readings: dict[str, _Reading] = field(default_factory=dict)
    supported: dict[tuple[str, frozenset[Family]], str] = field(default_factory=dict)

    def status(self, fault: str = "") -> GpuStatus:
        gpu = self.gpu
        return GpuStatus(
            index=gpu.index,
            uuid=gpu.uuid,
            pci=gpu.pci,
            name=gpu.name,
            fault=fault,
            dcgm_labels=self.dcgm_labels,
        )


class Collection:
    """Takes snapshots of an open NVML.

    A value that could not be read in this round is not in the snapshot of this round; what slow collectors
    read stays until their next turn, and goes at once when the GPU stops answering.
    """

    def __init__(
        self,
        nvml: Nvml,
        collectors: Sequence[Collector],
        slow_interval: float,
        *,
        dcgm_names: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nvml = nvml
        self._collectors = tuple(collectors)
        self._slow_interval = slow_interval
        self._dcgm_names = dcgm_names
        self._clock = clock
        self._slow_due = clock()
        self._devices: dict[int, _Device] = {}
        self._lines = Lines()
        self._families = [family for collector in self._collectors for family in collector.families]
        self._families += dcgm.FAMILIES if dcgm_names else ()
        self._errors: dict[tuple[str, str], int] = {}
        self._durations: dict[str, float] = {}
        self._driver = nvml.driver_version() or ""
        self._driver_text = render([self._driver_info()])
        self._xids = XidEvents()

    def _driver_info(self) -> Sample:
        return DRIVER(
            1,
            ("driver_version", self._driver),
            ("nvml_version", self._nvml.nvml_version() or ""),
            ("cuda_version", self._nvml.cuda_version() or ""),
        )

    def take(self) -> Snapshot:
        """Ask everything that is due.

        Raises:
            NvmlGone: NVML as a whole stopped answering.
        """
        taken_at, started = time.time(), self._clock()
        slow = started >= self._slow_due
        if slow:
            self._slow_due = started + self._slow_interval
        spent: dict[str, float] = {}
        gpus = tuple(self._status(index, slow, spent) for index in range(self._nvml.count()))
        for index in [index for index in self._devices if index >= len(gpus)]:
            del self._devices[index]
        self._durations |= spent
        xids = tuple(self._xids.drain())
        body = pack(self._render().encode())
        return Snapshot(
            state=NvmlState.OK,
            taken_at=taken_at,
            taken_monotonic=started,
            duration=self._clock() - started,
            gpus=gpus,
            body=body,
            xids=xids,
            xid_events=self._xids.watching,
        )

    def close(self) -> None:
        """Give back what NVML holds for this collection; not NVML itself."""
        self._xids.close()

    def _status(self, index: int, slow: bool, spent: dict[str, float]) -> GpuStatus:
        device = self._devices.get(index)
        try:
            if device is None:
                device = self._open(index)
            for collector in self._collectors:
                if slow or not collector.slow or collector.name not in device.readings:
                    self._read(device, collector, spent)
        except GpuGone as error:
            self._devices.pop(index, None)
            return GpuStatus(index=index, fault=str(error)) if device is None else device.status(str(error))
        self._devices[index] = device
        return device.status()

    def _open(self, index: int) -> _Device:
        gpu = self._nvml.open_gpu(index)
        self._xids.watch(gpu)
        return _Device(
            gpu=gpu,
            labels=(("gpu", str(index)), ("uuid", gpu.uuid)),
            dcgm_labels=dcgm.labels(gpu, socket.gethostname(), self._driver) if self._dcgm_names else (),
        )

    def _read(self, device: _Device, collector: Collector, spent: dict[str, float]) -> None:
        started = self._clock()
        gpu, samples = device.gpu, tuple(collector.read(device.gpu))
        texts = self._lines.texts(device.labels, samples)
        if self._dcgm_names:
            texts |= self._lines.texts(device.dcgm_labels, dcgm.translate(samples))
        for error in gpu.errors:
            key = (collector.name, error)
            self._errors[key] = self._errors.get(key, 0) + 1
        device.readings[collector.name] = _Reading(texts, failed=bool(gpu.errors))
        gpu.errors.clear()
        spent[collector.name] = spent.get(collector.name, 0.0) + self._clock() - started

    def _render(self) -> str:
        devices = self._devices.values()
        readings = (reading.texts for device in devices for reading in device.readings.values())
        supported = "".join(self._supported(device) for device in devices)
        return "".join(
            (
                self._driver_text,
                document(self._families, readings),
                SUPPORTED.header if supported else "",
                supported,
                render(self._about_itself()),
            )
        )

    def _supported(self, device: _Device) -> str:
        return "".join(self._supported_by(device, collector) for collector in self._collectors)

    def _supported_by(self, device: _Device, collector: Collector) -> str:
        """What the collector could read; of what is missing after an error nothing can be said."""
        reading = device.readings[collector.name]
        shown = frozenset(reading.texts)
        families = [
            family
            for family in collector.families
            if family not in collector.occasional and (family in shown or not reading.failed)
        ]
        key = (collector.name, frozenset((*shown, *families)))
        text = device.supported.get(key)
        if text is None:
            samples = [SUPPORTED(int(family in shown), ("field", family.name)) for family in families]
            text = self._lines.texts(device.labels, samples).get(SUPPORTED, "")
            device.supported[key] = text
        return text

    def _about_itself(self) -> Iterator[Sample]:
        for name, seconds in self._durations.items():
            yield DURATION(round(seconds, 6), ("collector", name))
        for collector in self._collectors:
            failed = any(device.readings[collector.name].failed for device in self._devices.values())
            yield SUCCESS(int(not failed), ("collector", collector.name))
        for (name, error), number in self._errors.items():
            yield ERRORS(number, ("collector", name), ("error", error))
