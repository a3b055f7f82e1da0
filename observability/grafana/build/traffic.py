"""What clients send and how long it takes."""

from grafana_foundation_sdk.builders import dashboard as builders

from observability.grafana.build.frame import dashboard
from observability.grafana.build.kit import Panel, Query, percentiles, rising, series
from observability.grafana.build.thresholds import threshold

_WHERE = 'host=~"$host", model=~"$model"'


def build() -> builders.Dashboard:
    """The dashboard."""
    return dashboard(
        "llm-traffic",
        "LLM: traffic and latency",
        "What comes in at the gateways, how it ends, and where the time goes.",
        ("host", "model"),
        (("Traffic", _traffic()), ("Latency", _latency()), ("Errors", _errors())),
    )


def _rate(metric: str, by: str, where: str = _WHERE) -> Query:
    return Query(f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))", "{{" + by + "}}")


def _ends(where: str = _WHERE) -> Query:
    """Requests by how they ended; failures that never happened are counted too, as 0, and not shown."""
    return Query(
        f"sum by (outcome) (rate(llm_gateway_requests_total{{{where}}}[$__rate_interval])) > 0", "{{outcome}}"
    )


def _traffic() -> list[Panel]:
    return [
        series(
            "Requests",
            "Requests that ended a second, by how they ended (llm_gateway_requests_total).",
            "reqps",
            [_ends()],
            stacked=True,
        ),
        series(
            "Active requests",
            "Requests being served, from arrival to the end of the answer (llm_gateway_requests_in_flight).",
            "none",
            [Query(f"sum by (model) (llm_gateway_requests_in_flight{{{_WHERE}}})", "{{model}}")],
        ),
        series(
            "Queue depth",
            "Requests that wait at the gateway, by class, and inside the engines "
            "(llm_gateway_queue_depth, vllm:num_requests_waiting).",
            "none",
            [
                Query(f"sum by (class) (llm_gateway_queue_depth{{{_WHERE}}})", "gateway, {{class}}"),
                Query('sum(vllm:num_requests_waiting{host=~"$host", model_name=~"$model"})', "engines"),
            ],
            stacked=True,
            steps=rising(threshold("queue_depth")),
        ),
        series(
            "Tokens",
            "Tokens a second by kind: read prompts, their cached part, and made answers "
            "(llm_gateway_tokens_total).",
            "suffix: tok/s",
            [_rate("llm_gateway_tokens_total", "kind")],
        ),
        series(
            "Requests by endpoint",
            "Which parts of the API are used (llm_gateway_requests_total).",
            "reqps",
            [_rate("llm_gateway_requests_total", "endpoint")],
            stacked=True,
        ),
        series(
            "Bytes",
            "Bodies of requests and answers a second (llm_gateway_request_bytes_total, "
            "llm_gateway_response_bytes_total).",
            "Bps",
            [
                Query(f"sum(rate(llm_gateway_request_bytes_total{{{_WHERE}}}[$__rate_interval]))", "in"),
                Query(f"sum(rate(llm_gateway_response_bytes_total{{{_WHERE}}}[$__rate_interval]))", "out"),
            ],
        ),
    ]


def _latency() -> list[Panel]:
    parts = (
        ("llm_gateway_queue_seconds", "queue"),
        ("llm_gateway_engine_first_token_seconds", "engine"),
        ("llm_gateway_overhead_seconds", "gateway"),
    )
    return [
        series(
            "End to end",
            "From a request's arrival to the last byte of its answer (llm_gateway_request_seconds); long "
            "answers take long without a fault.",
            "s",
            percentiles("llm_gateway_request_seconds", _WHERE),
            steps=rising(threshold("latency_p99_seconds")),
        ),
        series(
            "Time to first token",
            "From a request's arrival to the first piece of its answer "
            "(llm_gateway_time_to_first_token_seconds).",
            "s",
            percentiles("llm_gateway_time_to_first_token_seconds", _WHERE),
            steps=rising(threshold("first_token_seconds")),
        ),
        series(
            "Between tokens",
            "Between two pieces of a streamed answer (llm_gateway_inter_token_seconds).",
            "s",
            percentiles("llm_gateway_inter_token_seconds", _WHERE),
            steps=rising(threshold("inter_token_seconds")),
        ),
        series(
            "Parts of the time to first token (P95)",
            "Where the time to first token goes: waiting for a place, the engine, the gateway itself "
            "(llm_gateway_queue_seconds, …engine_first_token_seconds, …overhead_seconds).",
            "s",
            [
                Query(
                    f"histogram_quantile(0.95, sum by (le) (rate({metric}_bucket{{{_WHERE}}}[$__rate_interval])))",
                    name,
                )
                for metric, name in parts
            ],
        ),
        series(
            "Time to first token by class (P95)",
            "Whether interactive requests go first (llm_gateway_time_to_first_token_seconds).",
            "s",
            [
                Query(
                    "histogram_quantile(0.95, sum by (class, le) (rate("
                    f"llm_gateway_time_to_first_token_seconds_bucket{{{_WHERE}}}[$__rate_interval])))",
                    "{{class}}",
                )
            ],
            steps=rising(threshold("first_token_seconds")),
        ),
        series(
            "End to end by model (P95)",
            "From arrival to the last byte, by model (llm_gateway_request_seconds).",
            "s",
            [
                Query(
                    "histogram_quantile(0.95, sum by (model, le) (rate("
                    f"llm_gateway_request_seconds_bucket{{{_WHERE}}}[$__rate_interval])))",
                    "{{model}}",
                )
            ],
            steps=rising(threshold("latency_p99_seconds")),
        ),
    ]


def _errors() -> list[Panel]:
    on_host = 'host=~"$host"'
    return [
        series(
            "4xx by status",
            "Answers that say the caller is wrong, by HTTP status (llm_gateway_http_responses_total).",
            "reqps",
            [_rate("llm_gateway_http_responses_total", "status", f'{on_host}, status=~"4.."')],
            stacked=True,
        ),
        series(
            "5xx by status",
            "Answers that say we are wrong, by HTTP status (llm_gateway_http_responses_total).",
            "reqps",
            [_rate("llm_gateway_http_responses_total", "status", f'{on_host}, status=~"5.."')],
            stacked=True,
        ),
        series(
            "Failed requests by reason",
            "Requests that did not end well, streams that broke after a 200 included "
            "(llm_gateway_requests_total).",
            "reqps",
            [_ends(f'{_WHERE}, outcome!="ok"')],
            stacked=True,
        ),
        series(
            "Authentication failures",
            "Requests without a valid key, by reason (llm_gateway_auth_failures_total).",
            "reqps",
            [_rate("llm_gateway_auth_failures_total", "reason", on_host)],
            stacked=True,
        ),
        series(
            "Rate limited",
            "Requests over a limit, by which (llm_gateway_rate_limited_total).",
            "reqps",
            [_rate("llm_gateway_rate_limited_total", "reason", on_host)],
            stacked=True,
        ),
        series(
            "Retries",
            "Requests sent again to another engine before their answer began, by reason "
            "(llm_gateway_retries_total).",
            "reqps",
            [_rate("llm_gateway_retries_total", "reason")],
            stacked=True,
        ),
    ]
