"""Panels in this project's style: a unit, a description and thresholds on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Protocol, Self, TypeVar

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
        _framed(timeseries.Panel(), title, description, unit, (width, 8), steps=steps, base=base)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common_models.VisibilityMode.NEVER)
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
) -> Panel:
    """The present value in large, with its course behind it."""
    panel = (
        _framed(stat.Panel(), title, description, unit, (4, 4), steps=steps, base=base)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(_last())
        .no_value("no data")
        .with_target(_target(query, "A"))
    )
    return panel if decimals is None else panel.decimals(decimals)


def bars(
    title: str, description: str, unit: str, query: Query, *, steps: Sequence[Step] = (), most: float
) -> Panel:
    """The present values side by side, each as a part of `most`."""
    return (
        _framed(bargauge.Panel(), title, description, unit, (8, 8), steps=steps)
        .min(0)
        .max(most)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .reduce_options(_last())
        .with_target(_target(query, "A", instant=True))
    )


def rows_of(
    title: str, description: str, unit: str, query: Query, *, hidden: Sequence[str] = (), width: int = 12
) -> Panel:
    """A table with a row a series, its labels and its value as columns, without those that are `hidden`."""
    exclude = dict.fromkeys(("Time", *hidden), True)
    return (
        _framed(table.Panel(), title, description, unit, (width, 8))
        .with_transformation(
            models.DataTransformerConfig(id_val="organize", options={"excludeByName": exclude})
        )
        .with_target(_target(query, "A", instant=True, as_table=True))
    )


def states(title: str, description: str, query: Query, names: Mapping[int, tuple[str, str]]) -> Panel:
    """Which state each series was in; `names` gives the word and the colour of a value."""
    options = {
        str(value): models.ValueMappingResult(text=word, color=color)
        for value, (word, color) in names.items()
    }
    return (
        _framed(statetimeline.Panel(), title, description, "none", (24, 6), base=BLUE)
        .mappings([models.ValueMap(options=options)])
        .show_value(common_models.VisibilityMode.NEVER)
        .fill_opacity(80)
        .legend(_legend())
        .tooltip(_tooltip())
        .with_target(_target(query, "A"))
    )


def firing(title: str, description: str) -> Panel:
    """The alerts of the provisioned Prometheus. The SDK has no builder for this panel.

    Grafana's list takes alerts from where they are evaluated and nowhere else; that source names its Alertmanager.
    """
    options: dict[str, object] = {
        "viewMode": "list",
        "groupMode": "default",
        "maxItems": 20,
        "sortOrder": 3,
        "dashboardAlerts": False,
        "datasource": "Prometheus",
        "showInstances": True,
        "stateFilter": {"firing": True, "pending": True, "noData": False, "normal": False, "error": True},
    }
    return _framed(builders.Panel().type("alertlist"), title, description, "none", (12, 8)).options(options)


class _Framed(Protocol):
    """What the builders of all kinds of panels have in common."""

    def title(self, title: str, /) -> Self: ...
    def description(self, description: str, /) -> Self: ...
    def unit(self, unit: str, /) -> Self: ...
    def datasource(self, datasource: models.DataSourceRef, /) -> Self: ...
    def span(self, w: int, /) -> Self: ...
    def height(self, h: int, /) -> Self: ...
    def thresholds(self, thresholds: Builder[models.ThresholdsConfig], /) -> Self: ...


_P = TypeVar("_P", bound=_Framed)


def _framed(
    panel: _P,
    title: str,
    description: str,
    unit: str,
    size: tuple[int, int],
    *,
    steps: Sequence[Step] = (),
    base: str = GREEN,
) -> _P:
    """`panel` with what every panel has; `size` is its width, of 24 columns, and its height in rows."""
    return (
        panel.title(title)
        .description(description)
        .unit(unit)
        .datasource(SOURCE)
        .span(size[0])
        .height(size[1])
        .thresholds(_thresholds(base, steps))
    )


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


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
