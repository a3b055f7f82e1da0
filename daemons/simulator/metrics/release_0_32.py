"""The families of vLLM 0.32, in its order and with its words."""

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric

from daemons.simulator.metrics.exposition import Labels, Snapshot, counter, gauge, histogram

_ESTIMATED = "Estimated number of {} (for Model Flops Utilization calculations)."
_CONNECTOR = "External prefix cache {} from KV connector cross-instance cache sharing, in terms of number of "

_BY_REASON = (
    "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; "
    "'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all "
    "reasons equals vllm:num_requests_waiting."
)
_SLEEP = (
    "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; "
    "weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2."
)
_TIERS = (
    "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to "
    "DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at "
    "admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits."
)
_HISTOGRAMS = {
    "request_prompt_tokens": "Number of prefill tokens processed.",
    "request_generation_tokens": "Number of generation tokens processed.",
    "iteration_tokens_total": "Histogram of number of tokens per engine_step.",
    "request_max_num_generation_tokens": "Histogram of maximum number of requested generation tokens.",
    "request_params_n": "Histogram of the n request parameter.",
    "request_params_max_tokens": "Histogram of the max_tokens request parameter.",
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "inter_token_latency_seconds": "Histogram of inter-token latency in seconds.",
    "request_time_per_output_token_seconds": "Histogram of time_per_output_token_seconds per request.",
    "e2e_request_latency_seconds": "Histogram of e2e request latency in seconds.",
    "request_queue_time_seconds": "Histogram of time spent in WAITING phase for request.",
    "request_inference_time_seconds": "Histogram of time spent in RUNNING phase for request.",
    "request_prefill_time_seconds": "Histogram of time spent in PREFILL phase for request.",
    "request_decode_time_seconds": "Histogram of time spent in DECODE phase for request.",
    "request_num_preemptions": "Histogram of the number of times a request was preempted.",
    "request_prefill_kv_computed_tokens": (
        "Histogram of new KV tokens computed during prefill (excluding cached tokens)."
    ),
}
_SCALED = frozenset(
    {
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_max_num_generation_tokens",
        "request_params_max_tokens",
        "request_prefill_kv_computed_tokens",
    }
)
"""Histograms of sizes, whose buckets end at ``max_model_len``."""

_CACHE_CONFIG = {
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "cache_hit_alignment_tokens": "None",
    "enable_mamba_shared_prefix_checkpoint": "False",
    "hash_block_size": "None",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "float32",
    "num_cpu_blocks": "None",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
}
"""Labels of ``cache_config_info`` that nothing changes here."""


class Release032:
    """See `Release`."""

    def __init__(self, max_model_len: int) -> None:
        self._max_model_len = max_model_len

    def families(self, snapshot: Snapshot) -> Iterable[Metric]:
        """All of them."""
        labels = {"engine": "0", **snapshot.labels}
        yield from _estimates(labels, snapshot.created)
        yield from _gauges(snapshot, labels)
        yield from _caches(snapshot, labels)
        yield from _tokens(snapshot, labels)
        yield from _requests(snapshot, labels)
        for name, text in _HISTOGRAMS.items():
            counted = snapshot.engine.stats.histograms[name]
            bounds = counted.bounds
            if name in _SCALED:
                bounds = tuple(bound for bound in bounds if bound <= self._max_model_len)
            yield histogram((f"vllm:{name}", text), labels, counted, bounds, snapshot.created)
        block = snapshot.cache_config["block_size"]
        config = {
            **_CACHE_CONFIG,
            **snapshot.cache_config,
            "effective_attention_block_size": block,
            "engine": "0",
        }
        yield gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", [(config, 1.0)])


def _with(labels: Labels, key: str, rows: dict[str, float]) -> list[tuple[Labels, float]]:
    return [({**labels, key: value}, count) for value, count in rows.items()]


def _estimates(labels: Labels, created: float) -> Iterable[Metric]:
    for name, text in (
        ("flops", "floating point operations per GPU"),
        ("read_bytes", "bytes read from memory per GPU"),
        ("write_bytes", "bytes written to memory per GPU"),
    ):
        yield counter(f"vllm:estimated_{name}_per_gpu", _ESTIMATED.format(text), [(labels, 0.0)], created)


def _gauges(snapshot: Snapshot, labels: Labels) -> Iterable[Metric]:
    scheduler = snapshot.engine.scheduler
    waiting = float(len(scheduler.waiting))
    yield gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        [(labels, float(len(scheduler.running)))],
    )
    yield gauge(
        "vllm:num_requests_waiting", "Number of requests waiting to be processed.", [(labels, waiting)]
    )
    reasons = {"capacity": waiting, "deferred": 0.0}
    yield gauge("vllm:num_requests_waiting_by_reason", _BY_REASON, _with(labels, "reason", reasons))
    states = {"awake": 1.0, "weights_offloaded": 0.0, "discard_all": 0.0}
    yield gauge("vllm:engine_sleep_state", _SLEEP, _with(labels, "sleep_state", states))
    usage = scheduler.pool.usage
    yield gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", [(labels, usage)])


def _caches(snapshot: Snapshot, labels: Labels) -> Iterable[Metric]:
    scheduler, created = snapshot.engine.scheduler, snapshot.created
    queried, hit = float(scheduler.queried_tokens), float(scheduler.hit_tokens)
    for name, text, value in (
        ("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", queried),
        ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", hit),
        ("external_prefix_cache_queries", _CONNECTOR.format("queries") + "queried tokens.", 0.0),
        ("external_prefix_cache_hits", _CONNECTOR.format("hits") + "cached tokens.", 0.0),
        ("mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items.", 0.0),
        ("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items.", 0.0),
    ):
        yield counter(f"vllm:{name}", text, [(labels, value)], created)


def _tokens(snapshot: Snapshot, labels: Labels) -> Iterable[Metric]:
    stats, created = snapshot.engine.stats, snapshot.created
    preempted, prompt, cached = (
        float(stats.preemptions),
        float(stats.prompt_tokens),
        float(stats.cached_tokens),
    )
    text = "Cumulative number of preemption from the engine."
    yield counter("vllm:num_preemptions", text, [(labels, preempted)], created)
    text = "Number of prefill tokens processed."
    yield counter("vllm:prompt_tokens", text, [(labels, prompt)], created)
    sources = {"local_compute": prompt - cached, "local_cache_hit": cached, "external_kv_transfer": 0.0}
    text = "Number of prompt tokens by source."
    yield counter("vllm:prompt_tokens_by_source", text, _with(labels, "source", sources), created)
    text = "Number of cached prompt tokens (local + external)."
    yield counter("vllm:prompt_tokens_cached", text, [(labels, cached)], created)
    hits = float(snapshot.engine.scheduler.hit_tokens)
    tiers = {"device": hits, "host": 0.0, "p2p": 0.0, "disk": 0.0, "external_unspecified": 0.0}
    yield counter("vllm:prompt_tokens_cached_by_source", _TIERS, _with(labels, "source", tiers), created)
    text = "Number of generation tokens processed."
    yield counter("vllm:generation_tokens", text, [(labels, float(stats.generation_tokens))], created)


def _requests(snapshot: Snapshot, labels: Labels) -> Iterable[Metric]:
    stats, created = snapshot.engine.stats, snapshot.created
    # A client that goes away is counted nowhere: "abort" stayed 0 on the real server, too.
    reasons = {
        "stop": float(stats.finished["stop"]),
        "length": float(stats.finished["length"]),
        **dict.fromkeys(("abort", "error", "repetition"), 0.0),
    }
    text = "Count of successfully processed requests."
    yield counter("vllm:request_success", text, _with(labels, "finished_reason", reasons), created)
    limits = {
        "max_num_queued_reqs": float(stats.rejected_requests),
        "max_num_queued_tokens": float(stats.rejected_tokens),
    }
    text = "Number of admission attempts rejected by a queue limit, by reason."
    yield counter("vllm:admission_rejections", text, _with(snapshot.labels, "reason", limits), created)
