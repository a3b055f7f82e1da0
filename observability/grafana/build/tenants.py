"""Who uses it, and how near to their limits they are."""

from grafana_foundation_sdk.builders import dashboard as builders

from observability.grafana.build.frame import dashboard
from observability.grafana.build.kit import RED, Panel, Query, bars, falling, figure, rising, rows_of, series
from observability.grafana.build.thresholds import threshold

_WHERE = 'host=~"$host", key=~"$key"'


def build() -> builders.Dashboard:
    """The dashboard."""
    return dashboard(
        "llm-tenants",
        "LLM: tenants",
        "Use by key, limits, and the ledger that bills come from.",
        ("host", "key"),
        (("Use", _use()), ("Limits", _limits()), ("Ledger", _ledger())),
    )


def _use() -> list[Panel]:
    return [
        series(
            "Answer tokens",
            "Tokens made a second for each key, the ten busiest (llm_gateway_tokens_total).",
            "suffix: tok/s",
            [
                Query(
                    "topk(10, sum by (key) (rate(llm_gateway_tokens_total"
                    f'{{{_WHERE}, kind="completion"}}[$__rate_interval])))',
                    "{{key}}",
                )
            ],
            stacked=True,
        ),
        series(
            "Prompt tokens",
            "Tokens read a second for each key, the ten busiest (llm_gateway_tokens_total).",
            "suffix: tok/s",
            [
                Query(
                    "topk(10, sum by (key) (rate(llm_gateway_tokens_total"
                    f'{{{_WHERE}, kind="prompt"}}[$__rate_interval])))',
                    "{{key}}",
                )
            ],
            stacked=True,
        ),
        series(
            "Requests in flight",
            "Requests of each key, waiting ones included, the ten busiest (llm_gateway_key_in_flight).",
            "none",
            [Query(f"topk(10, sum by (key) (llm_gateway_key_in_flight{{{_WHERE}}}))", "{{key}}")],
            stacked=True,
        ),
        rows_of(
            "Tokens in the time shown",
            "Tokens of each key and model in the time shown; bills come from the ledger, which is exact "
            "(llm_gateway_tokens_total).",
            "short",
            Query(f"sum by (key, model, kind) (increase(llm_gateway_tokens_total{{{_WHERE}}}[$__range]))"),
            width=16,
        ),
        bars(
            "Cached share of prompts",
            "Share of each key's prompt tokens that a prefix cache had, in the time shown "
            "(llm_gateway_tokens_total).",
            "percentunit",
            Query(
                f'sum by (key) (increase(llm_gateway_tokens_total{{{_WHERE}, kind="cached"}}[$__range])) / '
                f'(sum by (key) (increase(llm_gateway_tokens_total{{{_WHERE}, kind="prompt"}}[$__range])) > 0)',
                "{{key}}",
            ),
            most=1,
        ),
    ]


def _limits() -> list[Panel]:
    ratio = threshold("key_limit_ratio")
    return [
        bars(
            "Limits in use",
            "Share of each limit that is used now: concurrency, requests and tokens of the last minute, tokens "
            "of the day and month (llm_gateway_key_limit_used_ratio); the fifteen fullest.",
            "percentunit",
            Query(
                f"topk(15, max by (key, limit) (llm_gateway_key_limit_used_ratio{{{_WHERE}}}))",
                "{{key}} {{limit}}",
            ),
            steps=rising(ratio * 0.8, ratio),
            most=1,
        ),
        series(
            "Limits over time",
            "The same over time (llm_gateway_key_limit_used_ratio).",
            "percentunit",
            [
                Query(
                    f"topk(10, max by (key, limit) (llm_gateway_key_limit_used_ratio{{{_WHERE}}}))",
                    "{{key}} {{limit}}",
                )
            ],
            steps=rising(ratio),
        ),
        series(
            "Refused",
            "Requests of each key that were over a limit, by which (llm_gateway_rate_limited_total).",
            "reqps",
            [
                Query(
                    f"sum by (key, reason) (rate(llm_gateway_rate_limited_total{{{_WHERE}}}[$__rate_interval]))",
                    "{{key}} {{reason}}",
                )
            ],
            stacked=True,
        ),
    ]


def _ledger() -> list[Panel]:
    where = 'host=~"$host"'
    return [
        figure(
            "Ledger writable",
            "Whether the ledger can be written (llm_gateway_ledger_up); requests go on without it.",
            "percentunit",
            Query(f"min(llm_gateway_ledger_up{{{where}}})"),
            base=RED,
            steps=falling(0.99, 1),
            decimals=0,
        ),
        figure(
            "Estimated answers",
            "Answers of the time shown whose tokens the engine did not tell, and were estimated "
            "(llm_gateway_uncertain_usage_total).",
            "none",
            Query(f"sum(increase(llm_gateway_uncertain_usage_total{{{where}}}[$__range])) or vector(0)"),
            decimals=0,
        ),
        series(
            "Ledger's delay",
            "Age of the oldest request that is not in the ledger yet (llm_gateway_ledger_delay_seconds).",
            "s",
            [Query(f"max by (host) (llm_gateway_ledger_delay_seconds{{{where}}})", "{{host}}")],
            steps=rising(threshold("ledger_delay_seconds")),
        ),
        series(
            "Ledger's rows",
            "Requests written a second, those dropped for want of room, and writes that failed "
            "(llm_gateway_ledger_rows_total, …dropped_rows_total, …failures_total).",
            "wps",
            [
                Query(f"sum(rate(llm_gateway_ledger_rows_total{{{where}}}[$__rate_interval]))", "written"),
                Query(
                    f"sum(rate(llm_gateway_ledger_dropped_rows_total{{{where}}}[$__rate_interval]))",
                    "dropped",
                ),
                Query(
                    f"sum(rate(llm_gateway_ledger_failures_total{{{where}}}[$__rate_interval]))",
                    "failed writes",
                ),
            ],
        ),
    ]
