"""One self-contained HTML page: no script, no request, opens from a file without a network."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from daemons.loadtest.measure.capacity import Capacity
from daemons.loadtest.measure.compare import Comparison
from daemons.loadtest.measure.objectives import format_seconds
from daemons.loadtest.measure.results import Attribution, Check, Group, Latency, Result, Slice
from daemons.loadtest.report.svg import Line, Point, line_plot, share_bar
from daemons.loadtest.report.text import (
    LABELS,
    STAGE_COLUMNS,
    capacity_sentence,
    certainty,
    is_share,
    milliseconds,
    stage_cells,
)
from daemons.runtime.cli import counted

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root{--bg:#fff;--fg:#1c2024;--dim:#687076;--grid:#e4e7eb;--good:#18794e;--bad:#cd2b31;
--c0:#3b82f6;--c1:#f59e0b;--c2:#ef4444;--c3:#10b981;--c4:#8b5cf6;--c5:#64748b}
@media(prefers-color-scheme:dark){:root{--bg:#111417;--fg:#e6e8ea;--dim:#9ba1a6;--grid:#2b3036}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1540px;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}.dim{color:var(--dim)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .7rem;border-bottom:1px solid var(--grid);text-align:right}
td:first-child,th:first-child{text-align:left}td.in{padding-left:2rem}
table.plan td{text-align:left}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0}
.tiles div{border:1px solid var(--grid);border-radius:8px;padding:.6rem 1rem;min-width:9rem}
.tiles b{display:block;font-size:1.6rem;font-variant-numeric:tabular-nums}
.tiles small{display:block;color:var(--dim)}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}
.banner{padding:.6rem 1rem;border-radius:6px;border:1px solid currentColor;margin:.6rem 0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,640px),1fr));gap:1rem}
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}svg text{fill:var(--dim);font-size:11px}
.grid{stroke:var(--grid)}.window{fill:var(--grid);opacity:.45}polyline{fill:none;stroke-width:1.8}
.key{font-weight:400;white-space:nowrap;font-size:.85rem;margin-left:.8rem}
.key::before{content:"";display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.3em}
""" + "".join(
    f".c{n}{{stroke:var(--c{n})}}.f{n}{{fill:var(--c{n})}}.k{n}::before{{background:var(--c{n})}}"
    for n in range(6)
)


def render_page(
    result: Result, comparison: Comparison | None = None, capacity: Capacity | None = None
) -> str:
    """The page for a run, with the comparison or the capacity search it was part of."""
    parts = [
        _head(result),
        _verdicts(result, capacity),
        _tiles(result),
        _objectives(result.checks),
        _latency_table(result.overall),
        *(_group_table(result, kind, title) for kind, title in _GROUPS),
        _plots(result),
        _outcomes(result),
        _comparison(comparison) if comparison is not None else "",
        _capacity(capacity) if capacity is not None else "",
        _attribution(result.attribution) if result.attribution is not None else "",
        _plan(result),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>Load test of {escape(result.target)}</title><style>{_STYLE}</style></head><body>"
        f"{''.join(parts)}</body></html>\n"
    )


_CURVES = {
    "e2e": "from the schedule",
    "ttft": "from the schedule",
    "e2e_from_send": "from the send",
    "ttft_from_send": "from the send",
    "itl": "between tokens",
    "tpot": "mean of a request",
}
_GROUPS = (("type", "By prompt type"), ("key", "By key"), ("step", "By step"))


def _head(result: Result) -> str:
    start, end = result.window
    return (
        f"<h1>Load test of {escape(result.target)}, model {escape(result.model)}</h1>"
        f'<p class="dim">{escape(result.started)}, {end - start:.1f} s measured of {result.seconds:.1f} s '
        f"(ended: {escape(result.stopped_by)}; warm-up left out: {escape(result.warmup)})</p>"
    )


def _tiles(result: Result) -> str:
    group, health = result.overall, result.generator
    offered = (
        "" if result.plan["load"]["shape"] == "closed" else f"{group.offered_rate:,.2f} begun in that time"
    )
    tiles = [
        (f"{group.request_rate:,.2f}", "requests/s ended", offered),
        (f"{group.output_token_rate:,.1f}", "output tokens/s", f"{group.prompt_token_rate:,.1f} of prompts"),
        (f"{group.failed:,}", "failed", f"{group.error_share:.2%} of {counted(group.requests, 'request')}"),
        (
            f"{milliseconds(health.dispatch_p99)} ms",
            "dispatch lag P99",
            f"the generator's own; {health.cpu_share:.0%} of a core",
        ),
    ]
    if result.checks:
        tiles.insert(1, (f"{group.goodput:,.2f}", "good requests/s", "met every latency objective"))
    shown = "".join(f"<div><b>{n}</b>{what}<small>{more}</small></div>" for n, what, more in tiles)
    return f'<div class="tiles">{shown}</div>'


def _verdicts(result: Result, capacity: Capacity | None) -> str:
    parts = [f'<p class="banner bad">Invalid: {escape(reason)}</p>' for reason in result.invalid]
    missed = sum(not check.met for check in result.checks)
    if missed:
        parts.append(f'<p class="banner bad">{missed} of {len(result.checks)} objectives missed</p>')
    elif result.checks:
        chance = sum(not is_share(check) and not check.certain for check in result.checks)
        good, doubt = ("", f"; {chance} could be chance: a longer run says more") if chance else (" good", "")
        parts.append(f'<p class="banner{good}">Every objective met{doubt}</p>')
    warnings = [*result.warnings, *([] if result.steady else [result.steady_note])]
    parts += [f'<p class="banner">{escape(warning)}</p>' for warning in warnings]
    if capacity is not None:
        parts.append(f'<p class="banner"><b>{escape(capacity_sentence(capacity))}</b></p>')
    return "".join(parts)


def _objectives(checks: Sequence[Check]) -> str:
    rows = []
    for check in checks:
        mark = '<td class="good">met</td>' if check.met else '<td class="bad">missed</td>'
        measured = "not measured"
        if check.measured is not None:
            share = is_share(check)
            measured = f"{check.measured:.2%}" if share else format_seconds(check.measured)
        certain = certainty(check)
        rows.append(f"<tr><td>{escape(check.objective)}</td><td>{measured}</td>{mark}<td>{certain}</td></tr>")
    if not rows:
        return ""
    head = "<tr><th>objective</th><th>measured</th><th></th><th>95 % interval</th></tr>"
    return f"<h2>Objectives</h2><table>{head}{''.join(rows)}</table>"


def _latency_table(group: Group) -> str:
    rows = []
    for metric, label in LABELS.items():
        latency = group.latencies.get(metric)
        if latency is not None:
            inner = ' class="in"' if label.startswith(" ") else ""
            rows.append(f"<tr><td{inner}>{escape(label.strip())}</td>{_cells(latency)}</tr>")
    head = "".join(
        f"<th>{n}</th>" for n in ("", "mean", "P50", "P90", "P95", "P99", "95 % interval of P99", "max", "n")
    )
    return f"<h2>Latency in ms, from the intended start</h2><table><tr>{head}</tr>{''.join(rows)}</table>"


def _cells(latency: Latency) -> str:
    values = [latency.mean, latency.p50, latency.p90, latency.p95, latency.p99]
    interval = latency.intervals.get("p99")
    shown = f"{milliseconds(interval[0])} to {milliseconds(interval[1])}" if interval else "-"
    cells = [*map(milliseconds, values), shown, milliseconds(latency.max), f"{latency.count:,}"]
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _plots(result: Result) -> str:
    course, window, latencies = result.series, result.window, result.overall.latencies
    plots = [
        line_plot(
            [Line("offered", [(s.at, s.sent) for s in course], 0),
             Line("ok", [(s.at, s.ok) for s in course], 3),
             Line("failed", [(s.at, s.failed) for s in course], 2)],
            x_label="seconds", y_label="requests", title="Requests in each interval", window=window,
        ),
        line_plot(
            [Line("output tokens", [(s.at, s.output_tokens) for s in course], 4)],
            x_label="seconds", y_label="tokens", title="Output tokens in each interval", window=window,
        ),
        _three_lines(course, "ttft", "Time to first token, from the intended start", window),
        _three_lines(course, "e2e", "End to end, from the intended start", window),
        _percentile_plot(latencies, ("e2e", "e2e_from_send"), "End to end by percentile"),
        _percentile_plot(latencies, ("ttft", "ttft_from_send"), "Time to first token by percentile"),
        _percentile_plot(latencies, ("itl", "tpot"), "Inter-token latency by percentile"),
        line_plot(
            [Line("in flight", [(s.at, s.in_flight) for s in course], 0),
             Line("waiting in the client", [(s.at, s.backlog) for s in course], 1)],
            x_label="seconds", y_label="requests", title="Requests in flight", window=window,
        ),
        line_plot(
            [Line("dispatch lag, maximum", [(s.at, s.lag * 1e3) for s in course], 5)],
            x_label="seconds", y_label="ms", title="How late the generator itself was", window=window,
        ),
        *_gauge_plots(result.attribution, window),
    ]  # fmt: skip
    title = '<h2>Over time</h2><p class="dim">Shaded: what the figures are of.</p>'
    return f'{title}<div class="plots">{"".join(plots)}</div>'


def _three_lines(course: Sequence[Slice], metric: str, title: str, window: tuple[float, float]) -> str:
    lines = []
    for number, name in enumerate(("P50", "P95", "P99")):
        points = [(s.at, values[number] * 1e3) for s in course if (values := getattr(s, metric)) is not None]
        lines.append(Line(name, points, number))
    return line_plot(lines, x_label="seconds", y_label="ms", title=title, window=window)


def _percentile_plot(latencies: dict[str, Latency], metrics: Sequence[str], title: str) -> str:
    lines = [
        Line(_CURVES[metric], _tail_points(latencies[metric]), number)
        for number, metric in enumerate(metrics)
        if metric in latencies
    ]
    return line_plot(lines, x_label="one request in so many is slower", y_label="ms", title=title, log_x=True)


def _tail_points(latency: Latency) -> list[Point]:
    """(1 / (1 - share), ms): HdrHistogram's way to give each nine the same room."""
    points, seen = [], 0
    for low, high, count in latency.histogram:
        seen += count
        left = latency.count - seen
        points.append((latency.count / left if left else float(latency.count), (low + high) / 2 * 1e3))
    return points


def _gauge_plots(attribution: Attribution | None, window: tuple[float, float]) -> list[str]:
    if attribution is None:
        return []
    series = attribution.series
    together = ("gateway queue depth", "engine waiting", "engine running")
    queues = [Line(name, series[name], n) for n, name in enumerate(together) if name in series]
    found = [line_plot(queues, x_label="seconds", y_label="requests", title="Queues", window=window)]
    if "KV cache use" in series:
        points = [(at, value * 100) for at, value in series["KV cache use"]]
        found.append(
            line_plot(
                [Line("KV cache use", points, 4)],
                x_label="seconds",
                y_label="%",
                title="KV cache",
                window=window,
            )
        )
    return found


def _group_table(result: Result, kind: str, title: str) -> str:
    groups = [g for g in result.groups if g.kind == kind]
    if not groups:
        return ""
    names = (
        "",
        "n",
        "failed",
        "req/s",
        "tok/s",
        "TTFT P50",
        "P95",
        "P99",
        "inter-token P50",
        "P99",
        "end to end P50",
        "P95",
        "P99",
    )
    head = "".join(f"<th>{n}</th>" for n in names)
    rows = "".join(_group_row(group) for group in groups)
    return f"<h2>{title} (latencies in ms)</h2><table><tr>{head}</tr>{rows}</table>"


def _group_row(group: Group) -> str:
    wanted = (("ttft", "p50"), ("ttft", "p95"), ("ttft", "p99"), ("itl", "p50"), ("itl", "p99"),
              ("e2e", "p50"), ("e2e", "p95"), ("e2e", "p99"))  # fmt: skip
    values = [
        milliseconds(getattr(group.latencies[metric], field)) if metric in group.latencies else "-"
        for metric, field in wanted
    ]
    cells = [
        f"{group.requests:,}",
        f"{group.failed:,}",
        f"{group.request_rate:.2f}",
        f"{group.output_token_rate:,.1f}",
        *values,
    ]
    return f"<tr><td>{escape(group.name)}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"


def _outcomes(result: Result) -> str:
    rows = "".join(
        f"<tr><td>{escape(n.replace('_', ' '))}</td><td>{c:,}</td>"
        f"<td>{escape(result.reasons.get(n, ''))}</td></tr>"
        for n, c in result.overall.outcomes.items()
    )
    head = "<tr><th></th><th>requests</th><th>for example</th></tr>"
    return f"<h2>Outcomes</h2><table>{head if result.reasons else ''}{rows}</table>"


def _comparison(comparison: Comparison) -> str:
    rows = []
    for d in comparison.differences:
        show = format_seconds if d.unit == "s" else "{:,.1f} tok/s".format
        interval = f"{d.interval[0] - 1:+.1%} to {d.interval[1] - 1:+.1%}" if d.interval else "-"
        style = {"better": "good", "worse": "bad"}.get(d.verdict, "dim")
        rows.append(
            f"<tr><td>{escape(d.figure)}</td><td>{show(d.before)}</td><td>{show(d.now)}</td><td>{interval}</td>"
            f'<td class="{style}">{d.verdict}</td></tr>'
        )
    head = "<tr><th></th><th>before</th><th>now</th><th>95 % interval of the change</th><th></th></tr>"
    caveats = "".join(f'<p class="banner">{escape(c)}</p>' for c in comparison.caveats)
    title = f"Against the baseline of {escape(comparison.baseline)}"
    return f"<h2>{title}</h2>{caveats}<table>{head}{''.join(rows)}</table>"


def _capacity(capacity: Capacity) -> str:
    rows = "".join(
        f"<tr><td>{p.rate:.4g}/s</td><td>{p.verdict}</td><td>{escape(p.why)}</td></tr>"
        for p in capacity.probes
    )
    return f"<h2>Capacity search</h2><table>{rows}</table>"


def _attribution(attribution: Attribution) -> str:
    bar = share_bar([(c.stage, c.share) for c in attribution.causes], attribution.verdict)
    rows = "".join(_row("td", stage_cells(cause)) for cause in attribution.causes)
    notes = "".join(f"<li>{escape(n)}</li>" for n in [*attribution.notes, *attribution.problems])
    head = _row("th", STAGE_COLUMNS)
    return f"<h2>Where the tail comes from</h2>{bar}<table>{head}{rows}</table><ul>{notes}</ul>"


def _row(tag: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts)}</tr>"


def _plan(result: Result) -> str:
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(plain(result.plan[key]))}</td></tr>"
        for key in ("load", "duration", "requests", "mix", "keys", "warmup", "seed", "budget", "timeouts")
        if result.plan.get(key) not in (None, [], ())
    )
    return f'<h2>Plan</h2><table class="plan">{rows}</table>'


def plain(value: object) -> str:
    """A part of the plan as a person would write it."""
    if isinstance(value, dict):
        if set(value) >= {"mean", "stddev", "min", "max", "uniform"}:
            return _length(value)
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items() if v not in (None, False))
    if isinstance(value, list | tuple):
        return "; ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else "yes" if value is True else str(value)


def _length(value: Mapping[str, Any]) -> str:
    if value["uniform"]:
        return f"{value['min']}..{value['max']}"
    return f"{value['mean']:g}" + (f" ± {value['stddev']:g}" if value["stddev"] else "")
