"""The report for people: tables on a terminal, the same without colour in a file."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from daemons.loadtest.measure.capacity import Capacity
from daemons.loadtest.measure.compare import Comparison, Difference
from daemons.loadtest.measure.objectives import format_seconds
from daemons.loadtest.measure.results import NEGLIGIBLE, Attribution, Cause, Check, Group, Latency, Result
from daemons.runtime.cli import counted

LABELS = {
    "ttft": "time to first token",
    "ttft_from_send": "  from the send",
    "itl": "inter-token",
    "tpot": "time per output token",
    "e2e": "end to end",
    "e2e_from_send": "  from the send",
    "normalised": "end to end per output token",
}
STAGE_COLUMNS = ("stage", "mean ms", "P50 ms", "P99 ms", "share of the tail", "n")
_SHARES = ("errors", "goodput")
_COLOURS = {"better": "green", "worse": "red", "same": "dim", "unclear": "yellow"}


def milliseconds(value: float) -> str:
    """Seconds as milliseconds with a precision that suits the size."""
    ms = value * 1e3
    return f"{ms:,.0f}" if ms >= 1000 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def print_result(console: Console, result: Result) -> None:
    """The whole report of a run."""
    _headline(console, result)
    if result.overall.latencies:
        console.print(_latencies(result.overall))
    _types(console, result)
    _outcomes(console, result)
    if result.checks:
        console.print(_checks(result.checks))
    if result.attribution is not None:
        print_attribution(console, result.attribution)
    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow")
    if not result.steady:
        console.print(f"Warning: {result.steady_note}", style="yellow")
    for reason in result.invalid:
        console.print(f"INVALID: {reason}", style="bold red")


def _headline(console: Console, result: Result) -> None:
    group, health = result.overall, result.generator
    start, end = result.window
    console.print(
        f"\n{result.target}  model {result.model}  {end - start:.1f} s measured of {result.seconds:.1f} s "
        f"(ended: {result.stopped_by}; warm-up left out: {result.warmup})"
    )
    closed = result.plan["load"]["shape"] == "closed"
    offered = "" if closed else f" and {group.offered_rate:,.2f} begun in that time"
    console.print(
        f"{group.request_rate:,.2f} requests/s ended{offered}   "
        f"{group.output_token_rate:,.1f} output tok/s   {group.prompt_token_rate:,.1f} prompt tok/s   "
        f"{counted(group.requests, 'request')}, {group.ok:,} ok, "
        f"{group.failed:,} failed ({group.error_share:.2%})"
    )
    if result.checks:
        console.print(f"goodput {group.goodput:,.2f} requests/s that met every latency objective")
    console.print(
        f"generator: dispatch lag P99 {milliseconds(health.dispatch_p99)} ms, loop P99 "
        f"{milliseconds(health.loop_p99)} ms, {health.cpu_share:.0%} of a core",
        style="dim",
    )


def _latencies(group: Group) -> Table:
    table = Table(title="Latency in ms, from the intended start", title_justify="left")
    table.add_column("")
    for name in ("mean", "P50", "P90", "P95", "P99", "95 % interval of P99", "max", "n"):
        table.add_column(name, justify="right")
    for metric in ("ttft", "ttft_from_send", "itl", "tpot", "e2e", "e2e_from_send", "normalised"):
        latency = group.latencies.get(metric)
        if latency is not None:
            table.add_row(LABELS[metric], *_latency_cells(latency))
    return table


def _latency_cells(latency: Latency) -> list[str]:
    values = [latency.mean, latency.p50, latency.p90, latency.p95, latency.p99]
    interval = latency.intervals.get("p99")
    shown = f"{milliseconds(interval[0])} to {milliseconds(interval[1])}" if interval else "-"
    return [*map(milliseconds, values), shown, milliseconds(latency.max), f"{latency.count:,}"]


def _types(console: Console, result: Result) -> None:
    for kind, title in (("type", "By prompt type"), ("key", "By key"), ("step", "By step")):
        groups = [g for g in result.groups if g.kind == kind]
        if groups:
            console.print(_by_group(title, groups))


def _by_group(title: str, groups: Sequence[Group]) -> Table:
    table = Table(title=f"{title}, latencies in ms (P50 / P95 / P99)", title_justify="left")
    table.add_column("")
    for name in ("n", "failed", "req/s", "tok/s", "prompt tok", "TTFT", "inter-token", "end to end", "good"):
        table.add_column(name, justify="right")
    for group in groups:
        table.add_row(
            group.name,
            f"{group.requests:,}",
            f"{group.failed:,}",
            f"{group.request_rate:.2f}",
            f"{group.output_token_rate:,.1f}",
            f"{group.prompt_tokens / group.ok:.0f}" if group.ok else "-",
            *(_three(group, metric) for metric in ("ttft", "itl", "e2e")),
            f"{group.good / group.requests:.0%}" if group.requests else "-",
        )
    return table


def _three(group: Group, metric: str) -> str:
    latency = group.latencies.get(metric)
    if latency is None:
        return "-"
    return " / ".join(milliseconds(v) for v in (latency.p50, latency.p95, latency.p99))


def _outcomes(console: Console, result: Result) -> None:
    failures = {n: c for n, c in result.overall.outcomes.items() if n != "ok"}
    if failures:
        console.print("Not ok (in no latency):")
    for name, count in failures.items():
        example = f", for example: {result.reasons[name]}" if name in result.reasons else ""
        console.print(f"  {count:,} {name.replace('_', ' ')}{example}")


def _checks(checks: Sequence[Check]) -> Table:
    table = Table(title="Objectives", title_justify="left")
    for name in ("", "objective", "measured", "certainty"):
        table.add_column(name)
    for check in checks:
        verdict = Text("met", "green") if check.met else Text("MISSED", "bold red")
        table.add_row(verdict, check.objective, _measured(check), certainty(check))
    return table


def _measured(check: Check) -> str:
    if check.measured is None:
        return "not measured"
    return f"{check.measured:.2%}" if is_share(check) else format_seconds(check.measured)


def is_share(check: Check) -> bool:
    """Whether its measure is a share, not a duration."""
    return check.objective.split(": ")[-1].startswith(_SHARES)


def certainty(check: Check) -> str:
    """Whether chance could have decided an objective, with the interval that says so."""
    if check.interval is None:
        return "-" if is_share(check) or check.measured is None else "could be chance (no interval)"
    low, high = map(format_seconds, check.interval)
    return f"{'certain' if check.certain else 'could be chance'} ({low} to {high})"


def print_attribution(console: Console, attribution: Attribution) -> None:
    """Where the tail comes from."""
    if attribution.causes:
        table = Table(title=f"Where the tail comes from: {attribution.verdict}", title_justify="left")
        for number, name in enumerate(STAGE_COLUMNS):
            table.add_column(name, justify="right" if number else "left")
        for cause in attribution.causes:
            table.add_row(*stage_cells(cause))
        console.print(table)
    console.print(f"  metrics: {', '.join(attribution.sources) or 'none'}", style="dim")
    for note in attribution.notes:
        console.print(f"  {note}")
    for problem in attribution.problems:
        console.print(f"Warning: {problem}", style="yellow")


def stage_cells(cause: Cause) -> tuple[str, ...]:
    """A row of the stages, under `STAGE_COLUMNS`."""
    figures = [_within(*bounds) for bounds in cause.between] or [
        milliseconds(cause.p50),
        milliseconds(cause.p99),
    ]
    mean = "-" if cause.mean is None else milliseconds(cause.mean)
    share = "unknown" if cause.hidden > NEGLIGIBLE else f"{cause.share:.0%}"
    return (cause.stage, mean, *figures, share, f"{cause.count:,}")


def _within(low: float, high: float | None) -> str:
    """What a histogram tells of a percentile: the bounds of its bucket."""
    if high is None:
        return f"> {milliseconds(low)}"
    return f"{milliseconds(low)} to {milliseconds(high)}" if low else f"≤ {milliseconds(high)}"


def print_capacity(console: Console, capacity: Capacity) -> None:
    """The answer of a capacity search."""
    for probe in capacity.probes:
        console.print(f"  {probe.rate:>10.3f}/s  {probe.verdict:<8} {probe.why}")
    console.print(capacity_sentence(capacity), style="bold")


def capacity_sentence(capacity: Capacity) -> str:
    """The answer of a capacity search in a sentence."""
    note = f" ({capacity.note})" if capacity.note else ""
    if capacity.low is None:
        return f"Capacity: no rate that was tried meets the objectives{note}"
    if capacity.high is None:
        return f"Capacity: at least {capacity.low:.4g} requests/s{note}"
    return f"Capacity: between {capacity.low:.4g} and {capacity.high:.4g} requests/s{note}"


def print_comparison(console: Console, comparison: Comparison) -> None:
    """What changed since the baseline."""
    table = Table(title=f"Against the baseline of {comparison.baseline}", title_justify="left")
    table.add_column("")
    for name in ("before", "now", "change", "95 % interval", "verdict"):
        table.add_column(name, justify="right")
    for difference in comparison.differences:
        table.add_row(*_difference_cells(difference))
    console.print(table)
    for caveat in comparison.caveats:
        console.print(f"Warning: {caveat}", style="yellow")


def _difference_cells(difference: Difference) -> list[str | Text]:
    if difference.unit == "s":
        before, now = format_seconds(difference.before), format_seconds(difference.now)
    else:
        before, now = f"{difference.before:,.1f} tok/s", f"{difference.now:,.1f} tok/s"
    change = difference.now / difference.before - 1 if difference.before else 0.0
    ratio = difference.interval
    interval = f"{ratio[0] - 1:+.1%} to {ratio[1] - 1:+.1%}" if ratio else "-"
    verdict = Text(difference.verdict, _COLOURS[difference.verdict])
    return [difference.figure, before, now, f"{change:+.1%}", interval, verdict]
