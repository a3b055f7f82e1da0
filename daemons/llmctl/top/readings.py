"""What the pages say: GPUs, engines and keys as plain values, rates between two fetches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from daemons.llmctl.top.sources import Pages

_UNIT, _SUFFIX = "llm-engine@", ".service"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU; None where it does not tell."""

    index: str
    uuid: str
    name: str
    up: bool
    fault: str
    utilization: float | None
    memory_used: float | None
    memory_total: float | None
    power_watts: float | None
    power_limit_watts: float | None
    temperature_celsius: float | None
    clock_events: tuple[str, ...]
    units: tuple[str, ...]
    pci: str

    @property
    def names(self) -> set[str]:
        """What settings may call it; NVML writes the PCI domain with eight digits, others with four."""
        return {self.index, self.uuid.lower(), self.pci, self.pci.removeprefix("0000")} - {""}


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine; None where it does not tell.

    Attributes:
        gpus: indices of those its processes are on, else of those its settings give it.
        tokens_per_second: tokens generated.
        kv_used: share of the KV cache in use, 0 to 1.
    """

    name: str
    state: str
    gpus: tuple[str, ...]
    tokens_per_second: float | None
    running: float | None
    waiting: float | None
    kv_used: float | None


@dataclass(frozen=True, slots=True)
class Key:
    """A key by its name, never its secret.

    Attributes:
        in_flight: its requests that are being served.
        tokens_per_second: of prompts and answers together; the gateway counts them when a request ends.
    """

    name: str
    in_flight: float
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment.

    Attributes:
        silent: what did not answer.
        nvml: the state of NVML as the exporter tells it.
        queue: requests waiting at the gateway; None when it does not answer.
    """

    gpus: tuple[Gpu, ...]
    engines: tuple[Engine, ...]
    keys: tuple[Key, ...]
    queue: float | None
    nvml: str
    silent: tuple[str, ...]


Placed = Mapping[str, tuple[str, ...]]
"""GPUs (index, PCI address or UUID) that the settings give each engine."""


class _Series:
    """The samples of one page, by name."""

    def __init__(self, text: str | None) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        try:
            for family in text_string_to_metric_families(text or ""):
                for sample in family.samples:
                    self._samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        except ValueError:
            # A page that breaks off in the middle: what was read so far is true.
            return

    def all(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        return [
            (found, value)
            for found, value in self._samples.get(name, ())
            if all(found.get(label) == wanted for label, wanted in labels.items())
        ]

    def one(self, name: str, **labels: str) -> float | None:
        return next((value for _, value in self.all(name, **labels)), None)

    def total(self, name: str, **labels: str) -> float | None:
        values = [value for _, value in self.all(name, **labels)]
        return sum(values) if values else None

    def label(self, name: str, label: str, **labels: str) -> str:
        """The value of `label` where the series is 1."""
        return next((found.get(label, "") for found, value in self.all(name, **labels) if value == 1), "")


def read(
    now: Pages, before: Pages | None, earlier: Pages | None = None, placed: Placed | None = None
) -> Reading:
    """The state by `now`; rates of engines since `before`, those of keys since `earlier`."""
    seconds = now.at - before.at if before is not None else 0.0
    exporter, gateway = _Series(now.exporter), _Series(now.gateway)
    gpus = tuple(_gpu(exporter, labels, up) for labels, up in exporter.all("gpu_up"))
    engines = tuple(
        _engine(
            name,
            text,
            None if before is None else before.engines.get(name),
            seconds,
            _on(name, gpus, (placed or {}).get(name, ())),
        )
        for name, text in now.engines.items()
    )
    answers: dict[str, str | None] = {"exporter": now.exporter, "gateway": now.gateway, **now.engines}
    return Reading(
        gpus=tuple(sorted(gpus, key=lambda gpu: (len(gpu.index), gpu.index))),
        engines=engines,
        keys=_keys(gateway, now.at, earlier or before),
        queue=None if now.gateway is None else gateway.total("llm_gateway_queue_depth") or 0.0,
        nvml=exporter.label("gpu_exporter_nvml_state", "state"),
        silent=tuple(name for name, text in answers.items() if text is None),
    )


def _on(engine: str, gpus: Iterable[Gpu], placed: tuple[str, ...]) -> tuple[str, ...]:
    unit, wanted = f"{_UNIT}{engine}{_SUFFIX}", {name.lower() for name in placed}
    running = tuple(gpu.index for gpu in gpus if unit in gpu.units)
    return running or tuple(gpu.index for gpu in gpus if wanted & gpu.names)


def _gpu(page: _Series, labels: Mapping[str, str], up: float) -> Gpu:
    gpu = {"gpu": labels.get("gpu", ""), "uuid": labels.get("uuid", "")}
    return Gpu(
        index=gpu["gpu"],
        uuid=gpu["uuid"],
        name=page.label("gpu_info", "name", **gpu),
        up=bool(up),
        fault=page.label("gpu_fault", "reason", **gpu),
        utilization=page.one("gpu_utilization_ratio", **gpu),
        memory_used=page.one("gpu_memory_used_bytes", **gpu),
        memory_total=page.one("gpu_memory_total_bytes", **gpu),
        power_watts=page.one("gpu_power_watts", **gpu),
        power_limit_watts=page.one("gpu_power_limit_watts", **gpu),
        temperature_celsius=page.one("gpu_temperature_celsius", **gpu),
        clock_events=tuple(
            found["reason"]
            for found, value in page.all("gpu_clock_event_active", **gpu)
            if value and found["reason"] != "gpu_idle"
        ),
        units=tuple(found["unit"] for found, _ in page.all("gpu_unit_processes", **gpu)),
        pci=page.label("gpu_info", "pci_bus_id", **gpu),
    )


def _engine(name: str, text: str | None, before: str | None, seconds: float, gpus: tuple[str, ...]) -> Engine:
    page, earlier = _Series(text), _Series(before)
    state = page.label("llm_engine_state", "state") if text is not None else "silent"
    kv_used = page.one("vllm:kv_cache_usage_perc")
    return Engine(
        name=name,
        state=state or "unknown",
        gpus=gpus,
        tokens_per_second=_rate(
            page.total("vllm:generation_tokens_total"), earlier.total("vllm:generation_tokens_total"), seconds
        ),
        running=page.total("vllm:num_requests_running"),
        waiting=page.total("vllm:num_requests_waiting"),
        kv_used=page.one("vllm:gpu_cache_usage_perc") if kv_used is None else kv_used,
    )


def _keys(page: _Series, at: float, before: Pages | None) -> tuple[Key, ...]:
    told = before is not None and before.gateway is not None
    earlier, seconds = _Series(before.gateway if before else None), at - before.at if before and told else 0.0
    counted = page.all("llm_gateway_tokens_total") + page.all("llm_gateway_key_in_flight")
    keys = [
        Key(
            name,
            page.total("llm_gateway_key_in_flight", key=name) or 0.0,
            _rate(
                page.total("llm_gateway_tokens_total", key=name) or 0.0,
                earlier.total("llm_gateway_tokens_total", key=name) or 0.0,
                seconds,
            ),
        )
        for name in {labels.get("key", "") for labels, _ in counted} - {""}
    ]
    busy = [key for key in keys if key.in_flight or key.tokens_per_second]
    return tuple(sorted(busy, key=lambda key: (-key.in_flight, -(key.tokens_per_second or 0.0), key.name)))


def _rate(now: float | None, before: float | None, seconds: float) -> float | None:
    """Per second; None after a restart, which a counter shows by falling."""
    if now is None or before is None or seconds <= 0 or now < before:
        return None
    return (now - before) / seconds
