"""Line, area and bar plots as inline SVG: no script, no font, no file beside the page."""

from collections.abc import Callable, Sequence
from html import escape
from math import floor, log10

import msgspec

WIDTH, HEIGHT = 720, 260
_BAR = 36
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 40
Point = tuple[float, float]


class Line(msgspec.Struct, frozen=True):
    """A named series; `colour` numbers a colour of the page's palette."""

    name: str
    points: Sequence[Point]
    colour: int


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that divide a range (Heckbert's nice numbers)."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    size = 10 ** floor(log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first = floor(low / step)
    found = [step * n for n in range(first, first + count + 3)]
    return [t for t in found if low - 1e-9 <= t <= high + 1e-9]


def short(value: float) -> str:
    """A tick's label."""
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def _identity(value: float) -> float:
    return value


class _Axes:
    """Maps values to places."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], *, log_x: bool) -> None:
        self.x, self.y = x, (y[0], y[1] if y[1] > y[0] else y[0] + 1)
        self._scale: Callable[[float], float] = (lambda v: log10(max(v, 1e-9))) if log_x else _identity
        self.log_x = log_x

    def px(self, value: float) -> float:
        low, high = self._scale(self.x[0]), self._scale(self.x[1])
        share = (self._scale(value) - low) / (high - low) if high > low else 0.0
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def py(self, value: float) -> float:
        share = (value - self.y[0]) / (self.y[1] - self.y[0])
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def frame(self, x_label: str, y_label: str) -> list[str]:
        parts = []
        for tick in ticks(*self.y):
            y = self.py(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
        for tick in self._x_ticks():
            x = self.px(tick)
            parts.append(
                f'<line class="grid" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="{x:.1f}" x2="{x:.1f}"/>'
                f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{short(tick)}</text>'
            )
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
        parts.append(
            f'<text class="label" x="{(_LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(x_label)}</text>"
            f'<text class="label" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
        return parts

    def _x_ticks(self) -> list[float]:
        if not self.log_x:
            return ticks(*self.x, 8)
        low, high = floor(log10(max(self.x[0], 1e-9))), floor(log10(max(self.x[1], 1e-9))) + 1
        places = [10.0**p * m for p in range(low, high + 1) for m in (1, 2, 5)]
        return [p for p in places if self.x[0] <= p <= self.x[1]]


def line_plot(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_x: bool = False,
    window: tuple[float, float] | None = None,
) -> str:
    """A plot of `lines`; `window` is shaded. Empty when there is nothing to draw."""
    points = [p for line in lines for p in line.points]
    if len(points) < 2:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    axes = _Axes((min(xs), max(xs)), (min(0.0, *ys), max(ys) * 1.05), log_x=log_x)
    parts = axes.frame(x_label, y_label)
    if window is not None:
        parts.insert(0, _shade(axes, window))
    for line in lines:
        if line.points:
            path = " ".join(f"{axes.px(x):.1f},{axes.py(y):.1f}" for x, y in line.points)
            name = escape(line.name)
            parts.append(f'<polyline class="c{line.colour}" points="{path}"><title>{name}</title></polyline>')
    named = [(line.name, line.colour) for line in lines if line.points]
    return _figure(title, "".join(parts), named, HEIGHT)


def _shade(axes: _Axes, window: tuple[float, float]) -> str:
    left, right = axes.px(max(window[0], axes.x[0])), axes.px(min(window[1], axes.x[1]))
    return (
        f'<rect class="window" x="{left:.1f}" y="{_TOP}" width="{max(0, right - left):.1f}" '
        f'height="{HEIGHT - _TOP - _BOTTOM}"/>'
    )


def _figure(title: str, inside: str, named: Sequence[tuple[str, int]], height: int) -> str:
    keys = "".join(f'<span class="key k{colour}">{escape(name)}</span>' for name, colour in named)
    return (
        f"<figure><figcaption>{escape(title)} {keys}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{inside}</svg></figure>'
    )


def share_bar(parts: Sequence[tuple[str, float]], title: str) -> str:
    """A bar divided by shares that sum to at most 1; empty when all are 0."""
    if not any(share > 0 for _, share in parts):
        return ""
    at, drawn = 0.0, []
    named = [(f"{name} {share:.0%}", number % 6) for number, (name, share) in enumerate(parts)]
    for (label, colour), (_, share) in zip(named, parts, strict=True):
        place = f'x="{at:.1f}" y="0" width="{share * WIDTH:.1f}" height="{_BAR}"'
        drawn.append(f'<rect class="f{colour}" {place}><title>{escape(label)}</title></rect>')
        at += share * WIDTH
    return _figure(title, "".join(drawn), named, _BAR)
