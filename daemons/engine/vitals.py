"""What vLLM's ``/metrics`` says about its life, the same for every release since 0.6.6."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+(?P<value>\S+)", re.MULTILINE)

_TOKENS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count")
_KV_USE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_RUNNING = ("vllm:num_requests_running",)
_WAITING = ("vllm:num_requests_waiting",)
_GENERATED = ("vllm:generation_tokens_total",)
_NAMES = frozenset(_TOKENS + _KV_USE + _RUNNING + _WAITING)


@dataclass(frozen=True, slots=True)
class Vitals:
    """One look at an engine. Two that are equal mean that nothing moved in between.

    Attributes:
        tokens: prompt, generation and iteration counters.
        kv_use: share of the KV cache in use, 0 to 1.
    """

    tokens: tuple[float, ...]
    generated: float
    kv_use: tuple[float, ...]
    running: float
    waiting: float

    @property
    def busy(self) -> bool:
        """Whether the engine itself says that it has work."""
        return self.running > 0 or self.waiting > 0


def parse_vitals(exposition: str) -> Vitals:
    """Read vLLM's exposition; series that are absent count as nothing, several engines are summed."""
    found: dict[str, list[float]] = {}
    for sample in _SAMPLE.finditer(exposition):
        if sample["name"] in _NAMES:
            found.setdefault(sample["name"], []).append(float(sample["value"]))
    return Vitals(
        tokens=_sums(found, _TOKENS),
        generated=sum(_sums(found, _GENERATED)),
        kv_use=_sums(found, _KV_USE),
        running=sum(_sums(found, _RUNNING)),
        waiting=sum(_sums(found, _WAITING)),
    )


def _sums(found: dict[str, list[float]], names: Iterable[str]) -> tuple[float, ...]:
    return tuple(sum(found[name]) for name in names if name in found)
