"""What every dashboard has: variables, links to the others, annotations."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from observability.grafana.build.kit import SOURCE, Panel

TAG = "llm"

_VARIABLES = {
    "host": ("Host", "label_values(up, host)"),
    "model": ("Model", "label_values(llm_gateway_requests_total, model)"),
    "engine": ("Engine", 'label_values(llm_engine_state{host=~"$host"}, engine)'),
    "key": ("Key", "label_values(llm_gateway_tokens_total, key)"),
}

_RESTARTS = "sum by (host, engine, cause) (increase(llm_engine_restarts_total[$__rate_interval])) > 0"
_DEPLOYMENTS = (
    "count by (job, version) (llm_build_info) unless count by (job, version) (llm_build_info offset 5m)"
)
_ALERTS = 'sum by (alertname, severity, host, model, engine) (ALERTS{alertstate="firing"})'


def dashboard(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Panel]]],
) -> builders.Dashboard:
    """A dashboard of `rows`; those with a title are set apart by it."""
    board = (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .timezone("browser")
        .refresh("30s")
        .variables([_source(), *map(_variable, variables)])
        .annotations(
            [
                _annotation("Alerts", "red", _ALERTS),
                _annotation("Restarts", "orange", _RESTARTS),
                _annotation("Deployments", "blue", _DEPLOYMENTS),
            ]
        )
        .link(
            builders.DashboardLink("LLM dashboards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
    )
    for heading, panels in rows:
        board.with_row(builders.Row(heading))
        for panel in panels:
            board.with_panel(panel)
    return board


def _source() -> builders.DatasourceVariable:
    return builders.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _variable(name: str) -> builders.QueryVariable:
    label, query = _VARIABLES[name]
    return (
        builders.QueryVariable(name)
        .label(label)
        .query({"query": query, "refId": name})
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _annotation(name: str, color: str, expr: str) -> builders.AnnotationQuery:
    return builders.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color).expr(expr)
