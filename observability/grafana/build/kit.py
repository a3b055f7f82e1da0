"""Panels in this project's style: a unit, a description and thresholds on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
ALERTS = models.DataSourceRef(type_val="alertmanager", uid="alertmanager")

GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"

Panel = Builder[models.Panel]


@dataclass(frozen=True, slots=True)
class Query:
    """A query and how its series are named; empty is Grafana's own naming."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """From `value` on a panel is shown in `color`."""

    value: float
    color: str


def rising(warning: float, critical: float | None = None) -> tuple[Step, ...]:
    """Steps of what is worse the higher it is."""
    steps = (Step(warning, ORANGE),)
    return steps if critical is None else (*steps, Step(critical, RED))


def falling(critical: float, warning: float) -> tuple[Step, ...]:
    """Steps of what is worse the lower it is; below `critical` it is red."""
    return (Step(critical, ORANGE), Step(warning, GREEN))


def percentiles(metric: str, where: str, by: str = "") -> list[Query]:
    """P50, P95 and P99 of a histogram, for each value of the label `by`."""
    labels, legend = (f"{by}, le", f"{{{{{by}}}}} ") if by else ("le", "")
    return [
        Query(
            f"histogram_quantile({share / 100}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[$__rate_interval])))",
            f"{legend}P{share}",
        )
        for share in (50, 95, 99)
    ]


def series(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    steps: Sequence[Step] = (),
    base: str = GREEN,
    stacked: bool = False,
    most: float | None = None,
    width: int = 8,
) -> Panel:
    """Lines over time; thresholds are dashed."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(SOURCE)
        .span(width)
        .height(8)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common_models.VisibilityMode.NEVER)
        .thresholds(_thresholds(base, steps))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(_threshold_style(steps)))
        .legend(_legend())
        .tooltip(_tooltip())
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if most is not None:
        panel.max(most)
    return panel.targets(
        [_target(query, letter) for query, letter in zip(queries, ascii_uppercase, strict=False)]
    )


def figure(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Sequence[Step] = (),
    base: str = GREEN,
    decimals: int | None = None,
    width: int = 4,
) -> Panel:
    """The present value in large, with its course behind it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(SOURCE)
        .span(width)
        .height(4)
        .thresholds(_thresholds(base, steps))
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("no data")
        .with_target(_target(query, "A"))
    )
    return panel if decimals is None else panel.decimals(decimals)


def bars(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Sequence[Step] = (),
    base: str = GREEN,
    most: float | None = None,
    width: int = 8,
) -> Panel:
    """The present values side by side."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(SOURCE)
        .span(width)
        .height(8)
        .min(0)
        .thresholds(_thresholds(base, steps))
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(query, "A", instant=True))
    )
    return panel if most is None else panel.max(most)


def rows_of(
    title: str, description: str, unit: str, query: Query, *, hidden: Sequence[str] = (), width: int = 12
) -> Panel:
    """A table with a row a series and its labels as columns."""
    exclude = dict.fromkeys(("Time", *hidden), True)
    return (
        table.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(SOURCE)
        .span(width)
        .height(8)
        .thresholds(_thresholds(GREEN, ()))
        .with_transformation(
            models.DataTransformerConfig(id_val="organize", options={"excludeByName": exclude})
        )
        .with_target(_target(query, "A", instant=True, as_table=True))
    )


def states(
    title: str, description: str, query: Query, names: Mapping[int, tuple[str, str]], *, width: int = 24
) -> Panel:
    """Which state each series was in; `names` gives the word and the colour of a value."""
    options = {
        str(value): models.ValueMappingResult(text=word, color=color)
        for value, (word, color) in names.items()
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .unit("none")
        .datasource(SOURCE)
        .span(width)
        .height(6)
        .thresholds(_thresholds(BLUE, ()))
        .mappings([models.ValueMap(options=options)])
        .show_value(common_models.VisibilityMode.NEVER)
        .fill_opacity(80)
        .legend(_legend())
        .tooltip(_tooltip())
        .with_target(_target(query, "A"))
    )


def firing(title: str, description: str, *, width: int = 12) -> Panel:
    """Alertmanager's alerts. The SDK has no builder for this panel."""
    options: dict[str, object] = {
        "viewMode": "list",
        "groupMode": "default",
        "maxItems": 20,
        "sortOrder": 3,
        "dashboardAlerts": False,
        "datasource": "Alertmanager",
        "showInstances": True,
        "stateFilter": {"firing": True, "pending": True, "noData": False, "normal": False, "error": True},
    }
    return (
        builders.Panel()
        .type("alertlist")
        .title(title)
        .description(description)
        .unit("none")
        .datasource(ALERTS)
        .span(width)
        .height(8)
        .thresholds(_thresholds(GREEN, ()))
        .options(options)
    )


def _target(query: Query, ref: str, *, instant: bool = False, as_table: bool = False) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(ref).expr(query.expr).datasource(SOURCE)
    target = target.instant() if instant else target.range()
    if as_table:
        target = target.format(PromQueryFormat.TABLE)
    return target.legend_format(query.legend) if query.legend else target


def _thresholds(base: str, steps: Sequence[Step]) -> builders.ThresholdsConfig:
    found = [models.Threshold(value=None, color=base)]
    found += [models.Threshold(value=step.value, color=step.color) for step in steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


def _threshold_style(steps: Sequence[Step]) -> common_models.GraphThresholdsStyleMode:
    mode = common_models.GraphThresholdsStyleMode
    return mode.DASHED if steps else mode.OFF


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _tooltip() -> common.VizTooltipOptions:
    return (
        common.VizTooltipOptions()
        .mode(common_models.TooltipDisplayMode.MULTI)
        .sort(common_models.SortOrder.DESCENDING)
    )
