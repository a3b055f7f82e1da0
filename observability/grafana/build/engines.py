"""The engines: their states, their KV cache, their speed."""

from grafana_foundation_sdk.builders import dashboard as builders

from observability.grafana.build.frame import dashboard
from observability.grafana.build.kit import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    Panel,
    Query,
    percentiles,
    rising,
    series,
    states,
)
from observability.grafana.build.thresholds import threshold

_WHERE = 'host=~"$host", engine=~"$engine"'
_STATES = {
    1: ("starting", BLUE),
    2: ("ready", GREEN),
    3: ("draining", ORANGE),
    4: ("sick", RED),
    5: ("stopped", "text"),
}


def build() -> builders.Dashboard:
    """The dashboard."""
    return dashboard(
        "llm-engines",
        "LLM: engines and KV cache",
        "What each engine does. Series of vLLM's go by one name, whatever its release calls them.",
        ("host", "engine"),
        (("State", _state()), ("KV cache", _cache()), ("Work", _work()), ("Speed", _speed())),
    )


def _each(expr: str, legend: str = "{{engine}}") -> Query:
    return Query(expr, legend)


def _rate(metric: str, by: str = "engine", legend: str = "{{engine}}") -> Query:
    return Query(f"sum by ({by}) (rate({metric}{{{_WHERE}}}[$__rate_interval]))", legend)


def _mean(histogram: str) -> Query:
    total, count = (
        f"sum by (engine) (rate({histogram}_{part}{{{_WHERE}}}[$__rate_interval]))"
        for part in ("sum", "count")
    )
    return Query(f"{total} / {count}", "{{engine}}")


def _state() -> list[Panel]:
    coded = " or ".join(
        f'llm_engine_state{{{_WHERE}, state="{name}"}} * {code}' for code, (name, _) in _STATES.items()
    )
    return [
        states(
            "State",
            "What each engine's supervisor says of it (llm_engine_state).",
            _each(f"sum by (host, engine) ({coded})", "{{host}} {{engine}}"),
            _STATES,
        ),
        series(
            "Restarts",
            "Restarts of vLLM within the last hour, by cause (llm_engine_restarts_total).",
            "none",
            [
                Query(
                    f"sum by (engine, cause) (increase(llm_engine_restarts_total{{{_WHERE}}}[1h]))",
                    "{{engine}} {{cause}}",
                )
            ],
            steps=rising(threshold("engine_restarts")),
        ),
        series(
            "Since the last token",
            "Time since the engine's token counters moved (llm_engine_seconds_since_last_token); harmless while "
            "nothing is in flight.",
            "s",
            [_each(f"llm_engine_seconds_since_last_token{{{_WHERE}}}")],
            steps=rising(threshold("engine_silence_seconds")),
        ),
        series(
            "Duration of the last start",
            "From the command to the last warm-up answer, by phase (llm_engine_startup_phase_seconds).",
            "s",
            [
                Query(
                    f"sum by (engine, phase) (llm_engine_startup_phase_seconds{{{_WHERE}}})",
                    "{{engine}} {{phase}}",
                )
            ],
            stacked=True,
        ),
    ]


def _cache() -> list[Panel]:
    return [
        series(
            "KV cache use",
            "Share of the KV cache in use (llm:kv_cache_usage:ratio). Full: requests wait or are preempted.",
            "percentunit",
            [_each(f"llm:kv_cache_usage:ratio{{{_WHERE}}}")],
            steps=rising(threshold("kv_cache_warning"), threshold("kv_cache_critical")),
            most=1,
        ),
        series(
            "Offload tier",
            "Share of the KV cache's second tier in host memory in use: kv_offload since 0.16, the CPU cache of "
            "0.6.6 (llm:kv_offload_usage:ratio). Empty where no such tier is configured.",
            "percentunit",
            [_each(f"llm:kv_offload_usage:ratio{{{_WHERE}}}")],
            most=1,
        ),
        series(
            "Prefix hits",
            "Share of prompt tokens that the prefix cache had, over five minutes "
            "(llm:prefix_cache_hits:ratio_rate5m).",
            "percentunit",
            [_each(f"llm:prefix_cache_hits:ratio_rate5m{{{_WHERE}}}")],
            most=1,
        ),
    ]


def _work() -> list[Panel]:
    return [
        series(
            "Running, waiting, swapped",
            "Requests on the GPU, waiting inside the engine, and (before 0.8) swapped to host memory "
            "(vllm:num_requests_running, vllm:num_requests_waiting, llm:requests_swapped:count).",
            "none",
            [
                Query(f"sum by (engine) (vllm:num_requests_running{{{_WHERE}}})", "{{engine}} running"),
                Query(f"sum by (engine) (vllm:num_requests_waiting{{{_WHERE}}})", "{{engine}} waiting"),
                Query(f"llm:requests_swapped:count{{{_WHERE}}}", "{{engine}} swapped"),
            ],
        ),
        series(
            "Preemptions",
            "Requests taken off the GPU for want of KV cache, in five minutes (llm:preemptions:increase5m).",
            "none",
            [_each(f"llm:preemptions:increase5m{{{_WHERE}}}")],
            steps=rising(1),
        ),
        series(
            "Requests by end",
            "Requests that ended a second, by why the engine stopped (vllm:request_success_total).",
            "reqps",
            [_rate("vllm:request_success_total", "finished_reason", "{{finished_reason}}")],
            stacked=True,
        ),
        series(
            "Tokens made",
            "Answer tokens a second (vllm:generation_tokens_total).",
            "suffix: tok/s",
            [_rate("vllm:generation_tokens_total")],
        ),
        series(
            "Tokens read",
            "Prompt tokens a second, cached ones included (vllm:prompt_tokens_total).",
            "suffix: tok/s",
            [_rate("vllm:prompt_tokens_total")],
        ),
        series(
            "Tokens a step (mean)",
            "Tokens in one pass over the model: what batching yields (vllm:iteration_tokens_total).",
            "none",
            [_mean("vllm:iteration_tokens_total")],
        ),
    ]


def _speed() -> list[Panel]:
    return [
        series(
            "Between tokens",
            "Inter-token latency as the engine measures it (llm:inter_token_latency_seconds).",
            "s",
            percentiles("llm:inter_token_latency_seconds", _WHERE, "engine"),
            steps=rising(threshold("inter_token_seconds")),
        ),
        series(
            "Time to first token in the engine",
            "From the request's arrival at the engine (vllm:time_to_first_token_seconds).",
            "s",
            percentiles("vllm:time_to_first_token_seconds", _WHERE, "engine"),
            steps=rising(threshold("first_token_seconds")),
        ),
        series(
            "Waiting in the engine (mean)",
            "Time in vLLM's own queue (vllm:request_queue_time_seconds); the gateway keeps it short. The mean, since "
            "the first bucket ends at 0.3 s.",
            "s",
            [_mean("vllm:request_queue_time_seconds")],
        ),
    ]
