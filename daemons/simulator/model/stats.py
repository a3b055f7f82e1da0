"""What the engine counts about itself, in the shape the metrics endpoint needs."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

_SIZES: tuple[float, ...] = (
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1000.0,
    2000.0,
    5000.0,
    10000.0,
    20000.0,
)
_SIZES += (50000.0, 100000.0, 200000.0, 500000.0, 1000000.0)
_LATENCY: tuple[float, ...] = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
)
_LATENCY += (480.0, 960.0, 1920.0, 7680.0)
_FIRST_TOKEN: tuple[float, ...] = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
_FIRST_TOKEN += (20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_PER_TOKEN: tuple[float, ...] = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
_PER_TOKEN += (20.0, 40.0, 80.0)
_STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
_FEW = (1.0, 2.0, 5.0, 10.0, 20.0)
_PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)


class Histogram:
    """Counts of observations below upper bounds, as Prometheus has them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def below(self, bounds: Sequence[float]) -> list[tuple[str, float]]:
        """Cumulative counts at those of its own bounds that are in `bounds`, and at ``+Inf``."""
        rows: list[tuple[str, float]] = []
        total = 0
        wanted = set(bounds)
        for bound, count in zip(self.bounds, self.counts, strict=False):
            total += count
            if bound in wanted:
                rows.append((str(bound), float(total)))
        rows.append(("+Inf", float(total + self.counts[-1])))
        return rows


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The times of one finished sequence, in seconds; see `Stats.finished`."""

    queued: float
    prefill: float
    decode: float
    total: float


@dataclass(slots=True)
class Stats:
    """Counters since the start. Durations are seconds, sizes are tokens."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    rejected_requests: int = 0
    rejected_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0})
    histograms: dict[str, Histogram] = field(
        default_factory=lambda: {
            "request_prompt_tokens": Histogram(_SIZES),
            "request_generation_tokens": Histogram(_SIZES),
            "iteration_tokens_total": Histogram(_STEP_TOKENS),
            "request_max_num_generation_tokens": Histogram(_SIZES),
            "request_params_n": Histogram(_FEW),
            "request_params_max_tokens": Histogram(_SIZES),
            "time_to_first_token_seconds": Histogram(_FIRST_TOKEN),
            "inter_token_latency_seconds": Histogram(_PER_TOKEN),
            "request_time_per_output_token_seconds": Histogram(_PER_TOKEN),
            "e2e_request_latency_seconds": Histogram(_LATENCY),
            "request_queue_time_seconds": Histogram(_LATENCY),
            "request_inference_time_seconds": Histogram(_LATENCY),
            "request_prefill_time_seconds": Histogram(_LATENCY),
            "request_decode_time_seconds": Histogram(_LATENCY),
            "request_num_preemptions": Histogram(_PREEMPTIONS),
            "request_prefill_kv_computed_tokens": Histogram(_SIZES),
        }
    )

    def observe(self, name: str, value: float) -> None:
        """Add `value` to the histogram `name`."""
        self.histograms[name].observe(value)

    def times(self, life: Lifetime, generated: int) -> None:
        """Book the times of a finished sequence of `generated` tokens."""
        self.observe("e2e_request_latency_seconds", life.total)
        self.observe("request_queue_time_seconds", life.queued)
        self.observe("request_inference_time_seconds", life.prefill + life.decode)
        self.observe("request_prefill_time_seconds", life.prefill)
        self.observe("request_decode_time_seconds", life.decode)
        per_token = life.decode / (generated - 1) if generated > 1 else 0.0
        self.observe("request_time_per_output_token_seconds", per_token)
