"""Service level objectives: what is promised, what was kept, how fast the budget burns."""

from grafana_foundation_sdk.builders import dashboard as builders

from observability.grafana.build.frame import dashboard
from observability.grafana.build.kit import RED, Panel, Query, falling, figure, rising, series
from observability.grafana.build.thresholds import threshold

_OBJECTIVES = {
    "availability": ("Availability", "requests that did not fail on our side", "availability"),
    "time_to_first_token": ("Time to first token", "requests whose first token came in time", "first_token"),
    "inter_token": ("Between tokens", "gaps between tokens that were short enough", "inter_token"),
}


def build() -> builders.Dashboard:
    """The dashboard."""
    rows = [(title, _row(slo)) for slo, (title, _, _) in _OBJECTIVES.items()]
    return dashboard(
        "llm-slo",
        "LLM: objectives",
        "Service level objectives by model. 429 and clients that went away are no events. Burn rate 1 uses up "
        "the budget of 30 days in 30 days.",
        ("model",),
        rows,
    )


def _row(slo: str) -> list[Panel]:
    title, what, name = _OBJECTIVES[slo]
    objective = threshold(name)
    where = f'slo="{slo}", model=~"$model"'
    return [
        figure(
            f"{title}: kept",
            f"Share of {what} in the last 30 days, for all models (slo:sli_errors:rate30d, slo:sli_events:rate30d); "
            f"the objective is {objective:.1%}.",
            "percentunit",
            Query(
                f"1 - sum(slo:sli_errors:rate30d{{{where}}}) / (sum(slo:sli_events:rate30d{{{where}}}) > 0)"
            ),
            base=RED,
            steps=falling(1 - 2 * (1 - objective), objective),
            decimals=2,
        ),
        figure(
            f"{title}: budget left",
            "Part of the 30 days' error budget that is left, for the model that stands worst; −100 % is the "
            "lowest shown (slo:error_budget_remaining:ratio).",
            "percentunit",
            Query(f"clamp_min(min(slo:error_budget_remaining:ratio{{{where}}}), -1)"),
            base=RED,
            steps=falling(0, 0.25),
            decimals=1,
        ),
        series(
            f"{title}: burn rate",
            "How many times faster than allowed the error budget is used, over an hour and over six "
            "(slo:sli_error:ratio_rate1h, …6h). 14.4 and 6 alert at once.",
            "none",
            [
                Query(f"slo:sli_error:ratio_rate1h{{{where}}} / {1 - objective:g}", "{{model}} 1 h"),
                Query(f"slo:sli_error:ratio_rate6h{{{where}}} / {1 - objective:g}", "{{model}} 6 h"),
            ],
            steps=rising(6, 14.4),
        ),
        series(
            f"{title}: missed",
            "Share that missed the objective, over five minutes (slo:sli_error:ratio_rate5m).",
            "percentunit",
            [Query(f"slo:sli_error:ratio_rate5m{{{where}}}", "{{model}}")],
            steps=rising(1 - objective),
        ),
    ]
