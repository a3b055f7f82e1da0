"""The families of vLLM 0.6.6 (its V0 engine): other names for the cache and for the time of a token."""

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric

from daemons.simulator.metrics.exposition import Snapshot, counter, gauge, histogram
from daemons.simulator.model.stats import Histogram

_LATENCY = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
_FEW = (1.0, 2.0, 5.0, 10.0, 20.0)

_HISTOGRAMS: tuple[tuple[str, str, str, tuple[float, ...] | None], ...] = (
    (
        "iteration_tokens_total",
        "iteration_tokens_total",
        "Histogram of number of tokens per engine_step.",
        _STEP_TOKENS,
    ),
    (
        "time_to_first_token_seconds",
        "time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        _FIRST_TOKEN,
    ),
    (
        "time_per_output_token_seconds",
        "inter_token_latency_seconds",
        "Histogram of time per output token in seconds.",
        _PER_TOKEN,
    ),
    (
        "e2e_request_latency_seconds",
        "e2e_request_latency_seconds",
        "Histogram of end to end request latency in seconds.",
        _LATENCY,
    ),
    (
        "request_queue_time_seconds",
        "request_queue_time_seconds",
        "Histogram of time spent in WAITING phase for request.",
        _LATENCY,
    ),
    (
        "request_inference_time_seconds",
        "request_inference_time_seconds",
        "Histogram of time spent in RUNNING phase for request.",
        _LATENCY,
    ),
    (
        "request_prefill_time_seconds",
        "request_prefill_time_seconds",
        "Histogram of time spent in PREFILL phase for request.",
        _LATENCY,
    ),
    (
        "request_decode_time_seconds",
        "request_decode_time_seconds",
        "Histogram of time spent in DECODE phase for request.",
        _LATENCY,
    ),
    (
        "time_in_queue_requests",
        "request_queue_time_seconds",
        "Histogram of time the request spent in the queue in seconds.",
        _LATENCY,
    ),
    ("request_prompt_tokens", "request_prompt_tokens", "Number of prefill tokens processed.", None),
    (
        "request_generation_tokens",
        "request_generation_tokens",
        "Number of generation tokens processed.",
        None,
    ),
    (
        "request_max_num_generation_tokens",
        "request_max_num_generation_tokens",
        "Histogram of maximum number of requested generation tokens.",
        None,
    ),
    ("request_params_n", "request_params_n", "Histogram of the n request parameter.", _FEW),
    (
        "request_params_max_tokens",
        "request_params_max_tokens",
        "Histogram of the max_tokens request parameter.",
        None,
    ),
)
"""Name, counter of ours behind it, help, bounds (None: as many as the context has)."""

_CACHE_CONFIG = {
    "cache_dtype": "auto",
    "cpu_offload_gb": "0",
    "is_attention_free": "False",
    "num_cpu_blocks": "0",
    "sliding_window": "None",
    "swap_space_bytes": "0",
}
_CACHE_LABELS = (
    "block_size",
    "enable_prefix_caching",
    "gpu_memory_utilization",
    "num_gpu_blocks",
    "num_gpu_blocks_override",
)


class Release066:
    """See `Release`. Timings of the model's forward pass and averages of throughput are not simulated."""

    def __init__(self, max_model_len: int) -> None:
        self._max_model_len = max_model_len

    def families(self, snapshot: Snapshot) -> Iterable[Metric]:
        """All of them. This release writes no ``_created`` samples."""
        labels, engine = snapshot.labels, snapshot.engine
        config = {**_CACHE_CONFIG, **{key: snapshot.cache_config[key] for key in _CACHE_LABELS}}
        yield gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", [(config, 1.0)])
        lora = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
        yield gauge("vllm:lora_requests_info", "Running stats on lora requests.", [(lora, snapshot.created)])
        scheduler = engine.scheduler
        hit_rate = scheduler.hit_tokens / scheduler.queried_tokens if scheduler.queried_tokens else 0.0
        for name, text, value in (
            ("num_requests_running", "Number of requests currently running on GPU.", len(scheduler.running)),
            ("num_requests_waiting", "Number of requests waiting to be processed.", len(scheduler.waiting)),
            ("num_requests_swapped", "Number of requests swapped to CPU.", 0.0),
            ("gpu_cache_usage_perc", "GPU KV-cache usage. 1 means 100 percent usage.", scheduler.pool.usage),
            ("cpu_cache_usage_perc", "CPU KV-cache usage. 1 means 100 percent usage.", 0.0),
            ("cpu_prefix_cache_hit_rate", "CPU prefix cache block hit rate.", 0.0),
            ("gpu_prefix_cache_hit_rate", "GPU prefix cache block hit rate.", hit_rate),
        ):
            yield gauge(f"vllm:{name}", text, [(labels, float(value))])
        stats = engine.stats
        for name, text, value in (
            ("num_preemptions", "Cumulative number of preemption from the engine.", stats.preemptions),
            ("prompt_tokens", "Number of prefill tokens processed.", stats.prompt_tokens),
            ("generation_tokens", "Number of generation tokens processed.", stats.generation_tokens),
        ):
            yield counter(f"vllm:{name}", text, [(labels, float(value))], None)
        rows = [
            ({**labels, "finished_reason": reason}, float(n)) for reason, n in stats.finished.items() if n
        ]
        yield counter("vllm:request_success", "Count of successfully processed requests.", rows, None)
        for name, source, text, bounds in _HISTOGRAMS:
            counted = stats.histograms[source]
            yield histogram((f"vllm:{name}", text), labels, counted, bounds or self._sizes(counted), None)

    def _sizes(self, counted: Histogram) -> tuple[float, ...]:
        return tuple(bound for bound in counted.bounds if bound <= self._max_model_len)
