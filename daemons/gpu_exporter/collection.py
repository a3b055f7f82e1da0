"""One collection after another: asks every GPU through every collector and renders what they say."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from daemons.gpu_exporter.collectors import Collector
from daemons.gpu_exporter.families import Family, Labels, Sample, counter, format_labels, gauge, render
from daemons.gpu_exporter.nvml import Gpu, GpuGone, Nvml
from daemons.gpu_exporter.snapshot import GpuStatus, NvmlState, Snapshot

SUPPORTED = gauge(
    "gpu_exporter_field_supported",
    "Whether this GPU and driver offer the family named by field",
)
DURATION = gauge("gpu_exporter_collector_duration_seconds", "Time that the collector last took, all GPUs")
SUCCESS = gauge("gpu_exporter_collector_success", "Whether no call of the collector failed when it last ran")
ERRORS = counter("gpu_exporter_collector_errors_total", "NVML calls that failed, by collector and error")

_MAX_CACHED_LABELS = 20_000


@dataclass(slots=True)
class _Reading:
    """What one collector last said of one GPU."""

    texts: dict[Family, str] = field(default_factory=dict)
    failed: bool = False


@dataclass(slots=True)
class _Device:
    gpu: Gpu
    labels: Labels
    readings: dict[str, _Reading] = field(default_factory=dict)


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nvml = nvml
        self._collectors = tuple(collectors)
        self._slow_interval = slow_interval
        self._clock = clock
        self._slow_due = clock()
        self._devices: dict[int, _Device] = {}
        self._prefixes: dict[tuple[Labels, Family, Labels], str] = {}
        self._errors: dict[tuple[str, str], int] = {}
        self._durations: dict[str, float] = {}

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
        self._durations.update(spent)
        body = self._render().encode()
        return Snapshot(
            state=NvmlState.OK,
            taken_at=taken_at,
            taken_monotonic=started,
            duration=self._clock() - started,
            gpus=gpus,
            body=body,
        )

    def _status(self, index: int, slow: bool, spent: dict[str, float]) -> GpuStatus:
        device = self._devices.get(index)
        try:
            if device is None:
                gpu = self._nvml.open_gpu(index)
                device = _Device(gpu, (("gpu", str(index)), ("uuid", gpu.uuid)))
            for collector in self._collectors:
                if slow or not collector.slow or collector.name not in device.readings:
                    self._read(device, collector, spent)
        except GpuGone as error:
            self._devices.pop(index, None)
            identity = device.gpu if device else Gpu(None, index, "")
            return _describe(identity, fault=str(error))
        self._devices[index] = device
        return _describe(device.gpu)

    def _read(self, device: _Device, collector: Collector, spent: dict[str, float]) -> None:
        started = self._clock()
        gpu, lines = device.gpu, dict[Family, list[str]]()
        for sample in collector.read(gpu):
            lines.setdefault(sample.family, []).append(self._line(device.labels, sample))
        for error in gpu.errors:
            key = (collector.name, error)
            self._errors[key] = self._errors.get(key, 0) + 1
        texts = {family: "".join(parts) for family, parts in lines.items()}
        device.readings[collector.name] = _Reading(texts, failed=bool(gpu.errors))
        gpu.errors.clear()
        spent[collector.name] = spent.get(collector.name, 0.0) + self._clock() - started

    def _line(self, labels: Labels, sample: Sample) -> str:
        key = (labels, sample.family, sample.labels)
        prefix = self._prefixes.get(key)
        if prefix is None:
            if len(self._prefixes) >= _MAX_CACHED_LABELS:
                self._prefixes.clear()
            prefix = f"{sample.family.name}{format_labels((*labels, *sample.labels))} "
            self._prefixes[key] = prefix
        return f"{prefix}{sample.value!r}\n"

    def _render(self) -> str:
        parts: list[str] = []
        devices = list(self._devices.values())
        for collector in self._collectors:
            readings = [device.readings[collector.name] for device in devices]
            for family in collector.families:
                texts = [text for reading in readings if (text := reading.texts.get(family))]
                if texts:
                    parts.append(family.header)
                    parts.extend(texts)
        parts.append(render(self._about_itself()))
        return "".join(parts)

    def _about_itself(self) -> Iterable[Sample]:
        for name, seconds in self._durations.items():
            yield DURATION(round(seconds, 6), ("collector", name))
        for collector in self._collectors:
            failed = any(device.readings[collector.name].failed for device in self._devices.values())
            yield SUCCESS(int(not failed), ("collector", collector.name))
        for (name, error), number in self._errors.items():
            yield ERRORS(number, ("collector", name), ("error", error))


def _describe(gpu: Gpu, fault: str = "") -> GpuStatus:
    return GpuStatus(index=gpu.index, uuid=gpu.uuid, pci=gpu.pci, name=gpu.name, fault=fault)
