"""Draws the dashboards with the data of a running Prometheus, a plot a panel.

Grafana itself is not needed; what it would show is the same queries in the same places.
"""

import argparse
import datetime as dt
import io
import re
import sys
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox
from PIL import Image

from observability.grafana.panels import Board, Panel, Query, boards, filled, panels, rows
from observability.grafana.units import shown
from observability.prometheus.client import Prometheus, Series

_IMAGES = Path(__file__).parents[2] / "docs" / "img"
_COLUMNS = 24
_COLUMN_INCHES, _ROW_INCHES, _DPI = 0.68, 0.42, 75
_PAPER, _CARD, _INK, _FAINT = "#111217", "#181b1f", "#d0d0d8", "#6e7079"
_COLORS = {
    "green": "#73bf69",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "text": "#8e8e96",
}
_CYCLE = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#37872d", "#8ab8ff", "#ffb357"]
_LEGENDS = 8

Data = list[tuple[str, Series]]
"""The series of a panel, none without points, and their names in its legend."""


@dataclass(frozen=True, slots=True)
class Window:
    """The time shown, in POSIX seconds, and what rates are taken over."""

    start: float
    end: float
    step: float
    rate: str

    def fill(self, expr: str) -> str:
        """`expr` without variables."""
        return filled(expr, self.rate, f"{round(self.end - self.start)}s")


def draw(name: str, board: Board, prometheus: Prometheus, window: Window) -> bytes:
    """A picture of `board`, as PNG."""
    height = max(panel.grid["y"] + panel.grid["h"] for panel in panels(board))
    size = (_COLUMNS * _COLUMN_INCHES, (height + 1.4) * _ROW_INCHES)
    with mpl.rc_context({"font.size": 8, "text.color": _INK, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=size, facecolor=_PAPER)
        place = _Grid(height + 1.4)
        figure.text(0.008, place.top(-0.9), board["title"], fontsize=14, weight="bold", va="center")
        for title, y in rows(board):
            figure.text(0.008, place.top(y + 0.5), f"⌄ {title}", fontsize=10, weight="bold", va="center")
        for panel in panels(board):
            axes = figure.add_axes(place.inner(panel.grid))
            _card(figure, place, panel)
            if data := _fetch(panel, prometheus, window):
                _DRAW[panel.kind](axes, panel, data, window)
            else:
                _nothing(axes, panel)
        figure.text(0.992, place.top(-0.9), name, color=_FAINT, ha="right", va="center")
        return _png(figure)


class _Grid:
    """Grafana's grid of 24 columns in the coordinates of a figure."""

    def __init__(self, height: float) -> None:
        self._height = height

    def top(self, row: float) -> float:
        return 1 - (row + 1.4) / self._height

    def outer(self, grid: Any) -> tuple[float, float, float, float]:
        left, width = grid["x"] / _COLUMNS, grid["w"] / _COLUMNS
        return (
            left + 0.002,
            self.top(grid["y"] + grid["h"]) + 0.1 / self._height,
            width - 0.004,
            (grid["h"] - 0.2) / self._height,
        )

    def inner(self, grid: Any) -> tuple[float, float, float, float]:
        left, bottom, width, height = self.outer(grid)
        foot, head = (2.2 if grid["h"] > 5 else 0.4) / self._height, 1.1 / self._height
        return left + 0.035, bottom + foot, width - 0.045, height - foot - head


def _card(figure: Figure, place: _Grid, panel: Panel) -> None:
    left, bottom, width, height = place.outer(panel.grid)
    figure.patches.append(
        mpl.patches.Rectangle(
            (left, bottom), width, height, transform=figure.transFigure, facecolor=_CARD, zorder=-1
        )
    )
    figure.text(left + 0.005, bottom + height - 0.006, panel.title, va="top", weight="bold", fontsize=8.5)


def _fetch(panel: Panel, prometheus: Prometheus, window: Window) -> Data:
    if panel.kind == "alertlist":
        alerts = prometheus.instant("sum by (alertname, severity, alertstate) (ALERTS)", window.end)
        return [(one.labels["alertname"], one) for one in alerts]
    found = []
    for query in panel.queries:
        expr = window.fill(query.expr)
        if query.instant:
            answer = prometheus.instant(expr, window.end)
        else:
            answer = prometheus.over(expr, window.start, window.end, window.step)
        found += [(_named(query, one.labels), one) for one in answer if one.points]
    return found


def _named(query: Query, labels: dict[str, str]) -> str:
    if query.legend:
        return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), query.legend)
    return ", ".join(f"{key}={value}" for key, value in labels.items() if key != "__name__") or "value"


def _lines(axes: Axes, panel: Panel, data: Data, window: Window) -> None:
    _plain(axes)
    stacked = panel.defaults["custom"].get("stacking", {}).get("mode") == "normal"
    if stacked:
        moments = sorted({at for _, one in data for at, _ in one.points})
        heights = [[dict(one.points).get(at, 0.0) for at in moments] for _, one in data]
        axes.stackplot(_dates(moments), heights, colors=_CYCLE, alpha=0.75, linewidth=0)
    for (name, one), color in zip(data, _CYCLE * (len(data) // len(_CYCLE) + 1), strict=False):
        if stacked:
            axes.plot([], [], color=color, linewidth=3, label=name)
            continue
        axes.plot(
            _dates([at for at, _ in one.points]),
            [v for _, v in one.points],
            color=color,
            linewidth=1.1,
            label=name,
        )
    _finish_lines(axes, panel, window, len(data))


def _finish_lines(axes: Axes, panel: Panel, window: Window, count: int) -> None:
    axes.set_xlim(*_dates([window.start, window.end]))
    axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
    if "max" in panel.defaults:
        axes.set_ylim(top=panel.defaults["max"] * 1.02)
    low, high = axes.get_ylim()
    dashed = panel.defaults["custom"]["thresholdsStyle"]["mode"] == "dashed"
    for step in panel.defaults["thresholds"]["steps"] if dashed else ():
        # A line far above the data would flatten it: Grafana does not stretch the axis for it either.
        if step["value"] is not None and low <= step["value"] <= high:
            axes.axhline(step["value"], color=_COLORS[step["color"]], linewidth=0.9, linestyle="--")
    if high < 0.06 and panel.unit in ("none", "reqps", "cps"):
        axes.set_ylim(-0.02, 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, panel.unit)))
    _time_axis(axes, window)
    handles, labels = axes.get_legend_handles_labels()
    shown_labels = [label[:40] for label in labels[:_LEGENDS]]
    if count > _LEGENDS:
        shown_labels[-1] += f" … {count - _LEGENDS} more"
    wide = max(map(len, shown_labels)) > 20
    axes.legend(
        handles[:_LEGENDS],
        shown_labels,
        loc="upper left",
        bbox_to_anchor=(-0.08, -0.13),
        frameon=False,
        fontsize=6.5,
        ncols=2 if wide else 4,
        handlelength=1.0,
        columnspacing=1.0,
        labelspacing=0.25,
        borderaxespad=0,
        labelcolor=_INK,
    )


def _time_axis(axes: Axes, window: Window) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4))
    form = "%H:%M:%S" if window.end - window.start < 600 else "%H:%M"
    axes.xaxis.set_major_formatter(DateFormatter(form))  # type: ignore[no-untyped-call]


def _figure(axes: Axes, panel: Panel, data: Data, window: Window) -> None:
    del window
    axes.axis("off")
    _, one = data[0]
    value = one.points[-1][1]
    axes.fill_between(
        range(len(one.points)),
        [v for _, v in one.points],
        color=_color(panel, value),
        alpha=0.15,
        linewidth=0,
    )
    axes.set_xlim(0, max(1, len(one.points) - 1))
    axes.set_ylim(0, max(v for _, v in one.points) * 2 or 1)
    axes.text(
        0.5,
        0.5,
        shown(_rounded(value, panel), panel.unit),
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=17,
        weight="bold",
        color=_color(panel, value),
    )


def _rounded(value: float, panel: Panel) -> float:
    """`value` with the decimals that `panel` asks for, counted in its unit."""
    decimals = panel.defaults.get("decimals")
    if decimals is None:
        return value
    return round(value, int(decimals) + (2 if panel.unit == "percentunit" else 0))


def _bars(axes: Axes, panel: Panel, data: Data, window: Window) -> None:
    del window
    _plain(axes)
    data = sorted(data, key=lambda one: one[1].points[-1][1])[-12:]
    values = [one.points[-1][1] for _, one in data]
    most = panel.defaults.get("max", max(values) or 1)
    rows = max(len(data), 5)
    spots = range(rows - len(data), rows)
    axes.barh(spots, [most] * len(data), color="#24272d", height=0.7)
    axes.barh(spots, values, color=[_color(panel, value) for value in values], height=0.7)
    for spot, (name, _), value in zip(spots, data, values, strict=True):
        axes.text(most * 0.01, spot, name, va="center", fontsize=7, color="white")
        axes.text(most, spot, shown(value, panel.unit), va="center", ha="right", fontsize=7, color="white")
    axes.set_xlim(0, most)
    axes.set_ylim(-0.6, rows - 0.4)
    axes.axis("off")


def _table(axes: Axes, panel: Panel, data: Data, window: Window) -> None:
    del window
    axes.axis("off")
    hidden = panel.raw["transformations"][0]["options"]["excludeByName"]
    cells = [{**one.labels, "Value": shown(one.points[-1][1], panel.unit)} for _, one in data[:9]]
    columns = [key for key in dict.fromkeys(chain(*cells)) if key != "__name__" and key not in hidden]
    lines = [[row.get(column, "")[:40] for column in columns] for row in cells]
    widths = [max(map(len, [column, *texts])) + 2 for column, *texts in zip(columns, *lines, strict=True)]
    table = axes.table(
        lines,
        colLabels=columns,
        colLoc="left",
        colWidths=[width / sum(widths) for width in widths],
        loc="upper left",
        cellLoc="left",
        edges="horizontal",
        bbox=Bbox.from_bounds(-0.03, 1 - 0.105 * (len(lines) + 1), 1.03, 0.105 * (len(lines) + 1)),
    )
    table.auto_set_font_size(value=False)
    table.set_fontsize(7)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor("#2c3036")
        cell.get_text().set_color(_COLORS["blue"] if row == 0 else _INK)


def _states(axes: Axes, panel: Panel, data: Data, window: Window) -> None:
    _plain(axes)
    names = panel.defaults["mappings"][0]["options"]
    for row, (name, one) in enumerate(data):
        for at, value in one.points:
            color = _COLORS.get(names.get(f"{value:g}", {}).get("color", "text"), _FAINT)
            axes.barh(row, window.step / 86400, left=_dates([at])[0], color=color, height=0.7, linewidth=0)
        axes.text(0.01, row, name, transform=axes.get_yaxis_transform(), va="center", color=_PAPER)
    axes.set_yticks([])
    axes.set_xlim(*_dates([window.start, window.end]))
    _time_axis(axes, window)
    for spot, (name, color) in enumerate((one["text"], one["color"]) for one in names.values()):
        axes.text(spot * 0.08, -0.75, f"■ {name}", transform=axes.transAxes, color=_COLORS[color], fontsize=7)


def _alerts(axes: Axes, panel: Panel, data: Data, window: Window) -> None:
    del panel, window
    axes.axis("off")
    for row, (name, one) in enumerate(data[:9]):
        height, state = 0.94 - row * 0.11, f"{one.labels['alertstate']}, {one.labels['severity']}"
        color = _COLORS["red" if one.labels["severity"] == "critical" else "orange"]
        axes.text(-0.03, height, f"● {name}", color=color, transform=axes.transAxes)
        axes.text(0.6, height, state, transform=axes.transAxes)


_DRAW = {
    "timeseries": _lines,
    "stat": _figure,
    "bargauge": _bars,
    "table": _table,
    "state-timeline": _states,
    "alertlist": _alerts,
}


def _plain(axes: Axes) -> None:
    axes.set_facecolor(_CARD)
    axes.grid(visible=True, color="#2c3036", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_FAINT, labelsize=6.5, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _nothing(axes: Axes, panel: Panel) -> None:
    axes.axis("off")
    said = "no alert" if panel.kind == "alertlist" else "no data"
    axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center", color=_FAINT)


def _color(panel: Panel, value: float) -> str:
    steps = panel.defaults["thresholds"]["steps"]
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return _COLORS[reached[-1]["color"]]


def _dates(moments: list[float]) -> Any:
    return date2num([dt.datetime.fromtimestamp(at, dt.UTC) for at in moments])  # type: ignore[no-untyped-call]


def _png(figure: Figure) -> bytes:
    raw = io.BytesIO()
    figure.savefig(raw, dpi=_DPI, facecolor=_PAPER)
    small = io.BytesIO()
    Image.open(raw).convert("RGB").quantize(256, kmeans=3).save(small, "PNG", optimize=True)
    return small.getvalue()


def main(argv: list[str] | None = None) -> int:
    """Write a picture of each dashboard."""
    parser = argparse.ArgumentParser(prog="python -m observability.grafana.pictures", description=__doc__)
    parser.add_argument(
        "--prometheus", default="http://127.0.0.1:9090", help="its URL (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=30, help="time shown, up to now (default: 30)")
    parser.add_argument(
        "--out", type=Path, default=_IMAGES, help="folder of the pictures (default: docs/img)"
    )
    args = parser.parse_args(argv)
    end = time.time()
    start = end - args.minutes * 60
    window = Window(start, end, max(1.0, (end - start) / 300), "1m")
    write(args.out, Prometheus(args.prometheus), window)
    return 0


def write(folder: Path, prometheus: Prometheus, window: Window) -> None:
    """Write a picture of each dashboard to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, board in boards().items():
        (folder / f"{name}.png").write_bytes(draw(name, board, prometheus, window))


if __name__ == "__main__":
    sys.exit(main())
