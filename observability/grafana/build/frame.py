"""What every dashboard has: variables, links to the others, annotations."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from observability.grafana.build.kit import SOURCE, Panel

TAG = "llm"

_VARIABLES = {
    "host": ("Host", "label_values(up, host)"),
    "model": ("Model", "label_values(llm_gateway_requests_total, model)"),
    "engine": ("Engine", 'label_values(llm_engine_state{host=~"$host"}, engine)'),
    "key": ("Key", "label_values(llm_gateway_tokens_total, key)"),
}


@dataclass(frozen=True, slots=True)
class Note(Builder[models.AnnotationQuery]):
    """Marks of the times at which `expr` has a value above 0, one for each of its series."""

    name: str
    color: str
    expr: str
    title: str
    text: str

    def build(self) -> models.AnnotationQuery:
        """The annotation."""
        return _Titled(self)


class _Titled(models.AnnotationQuery):
    """With the words of a mark, which the SDK's annotation lacks: Grafana would show a mark without any."""

    def __init__(self, note: Note) -> None:
        super().__init__(note.name, SOURCE, icon_color=note.color, expr=note.expr)
        self._words = {"titleFormat": note.title, "textFormat": note.text}

    def to_json(self) -> dict[str, object]:
        return super().to_json() | self._words


NOTES = (
    Note(
        "Alerts",
        "red",
        'sum by (alertname, severity, host, model, engine) (ALERTS{alertstate="firing"})',
        "{{alertname}}",
        "{{severity}} {{host}} {{model}} {{engine}}",
    ),
    Note(
        "Restarts",
        "orange",
        "sum by (host, job, engine, cause) (increase(llm_engine_restarts_total[$__rate_interval])) > 0 or "
        'sum by (host, job, engine) (changes(process_start_time_seconds{job=~"llm-.+"}[$__rate_interval])) > 0',
        "{{job}} {{engine}} restarted",
        "{{host}} {{cause}}",
    ),
    Note(
        "Deployments",
        "blue",
        "count by (job, version) (llm_build_info) unless count by (job, version) (llm_build_info offset 5m)",
        "{{job}} {{version}}",
        "This version runs for the first time, or again.",
    ),
)


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
        .annotations(list(NOTES))
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
