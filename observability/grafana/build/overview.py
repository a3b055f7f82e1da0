"""Is it healthy, is it fast, is it full."""

from grafana_foundation_sdk.builders import dashboard as builders

from observability.grafana.build.frame import dashboard
from observability.grafana.build.kit import (
    RED,
    Panel,
    Query,
    Step,
    falling,
    figure,
    firing,
    percentiles,
    rising,
    rows_of,
    series,
)
from observability.grafana.build.thresholds import threshold

_WHERE = 'host=~"$host", model=~"$model"'


def build() -> builders.Dashboard:
    """The dashboard."""
    return dashboard(
        "llm-overview",
        "LLM: overview",
        "Is the service healthy, is it fast, is it full? The other dashboards say why.",
        ("host", "model"),
        (("Healthy", _healthy()), ("Fast", _fast()), ("Full", _full())),
    )


def _healthy() -> list[Panel]:
    objective = threshold("availability")
    return [
        figure(
            "Requests that went well",
            "Share of the last five minutes' requests that did not fail on our side; 429 and clients that went "
            "away do not count (slo:sli_errors:rate5m).",
            "percentunit",
            Query(
                '1 - sum(slo:sli_errors:rate5m{slo="availability", model=~"$model"})'
                ' / (sum(slo:sli_events:rate5m{slo="availability", model=~"$model"}) > 0)'
            ),
            base=RED,
            steps=falling(0.9, objective),
            decimals=2,
        ),
        figure(
            "Error budget left",
            "What is left of 30 days' allowed failures, for the objective and model that stand worst; below 0 "
            "the objective is missed, and −100 % is the lowest shown (slo:error_budget_remaining:ratio).",
            "percentunit",
            Query('clamp_min(min(slo:error_budget_remaining:ratio{model=~"$model"}), -1)'),
            base=RED,
            steps=falling(0, 0.25),
            decimals=1,
        ),
        figure(
            "Engines ready",
            "Engines that could take a request, of those that are configured (llm_engine_state).",
            "percentunit",
            Query('avg(llm_engine_state{host=~"$host", state="ready"})'),
            base=RED,
            steps=falling(0.5, 1),
            decimals=0,
        ),
        figure(
            "GPUs that answer",
            "GPUs that answer NVML, of those expected or seen before (gpu_up).",
            "percentunit",
            Query('avg(gpu_up{host=~"$host"})'),
            base=RED,
            steps=falling(0.99, 1),
            decimals=0,
        ),
        figure(
            "Targets down",
            "Daemons that do not answer Prometheus (up).",
            "none",
            Query('count(up{host=~"$host"} == 0) or vector(0)'),
            steps=(Step(1, RED),),
        ),
        figure(
            "Alerts firing",
            "Alerts that fire now (ALERTS).",
            "none",
            Query('count(ALERTS{alertstate="firing"}) or vector(0)'),
            steps=(Step(1, RED),),
        ),
        firing(
            "Alerts",
            "What fires or is about to, from Alertmanager. Each names what to do and links to its runbook.",
        ),
        rows_of(
            "Versions",
            "The release that each daemon runs (llm_build_info); more than one version is either an upgrade "
            "that goes on, or one that stopped halfway.",
            "none",
            Query('count by (host, job, version) (llm_build_info{host=~"$host"})'),
        ),
    ]


def _fast() -> list[Panel]:
    return [
        series(
            "Requests by model",
            "Requests that ended a second, however they ended (llm_gateway_requests_total).",
            "reqps",
            [
                Query(
                    f"sum by (model) (rate(llm_gateway_requests_total{{{_WHERE}}}[$__rate_interval]))",
                    "{{model}}",
                )
            ],
        ),
        series(
            "Time to first token",
            "From a request's arrival at the gateway to the first piece of its answer, queue included "
            "(llm_gateway_time_to_first_token_seconds).",
            "s",
            percentiles("llm_gateway_time_to_first_token_seconds", _WHERE),
            steps=rising(threshold("first_token_seconds")),
        ),
        series(
            "Tokens",
            "Prompt tokens read and answer tokens made a second, as the engines count them "
            "(llm_gateway_tokens_total); cached are prompt tokens that a prefix cache had.",
            "suffix: tok/s",
            [
                Query(
                    "sum by (kind) (rate(llm_gateway_tokens_total"
                    '{host=~"$host", model=~"$model"}[$__rate_interval]))',
                    "{{kind}}",
                )
            ],
        ),
    ]


def _full() -> list[Panel]:
    return [
        series(
            "Queue depth",
            "Requests that wait at gateways and engines together, by model (llm:queue_depth:sum).",
            "none",
            [Query('llm:queue_depth:sum{model=~"$model"}', "{{model}}")],
            steps=rising(threshold("queue_depth")),
        ),
        series(
            "KV cache use",
            "Share of each engine's KV cache in use, whatever its release calls it (llm:kv_cache_usage:ratio).",
            "percentunit",
            [Query('llm:kv_cache_usage:ratio{host=~"$host"}', "{{engine}}")],
            steps=rising(threshold("kv_cache_warning"), threshold("kv_cache_critical")),
            most=1,
        ),
        series(
            "GPU utilisation",
            "Share of time in which a kernel ran on each GPU (gpu_utilization_ratio).",
            "percentunit",
            [Query('gpu_utilization_ratio{host=~"$host"}', "{{host}} GPU {{gpu}}")],
            most=1,
        ),
    ]
