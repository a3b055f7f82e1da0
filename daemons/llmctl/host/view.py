"""A host on one screen."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from daemons.llmctl.host.checks.finding import Finding
from daemons.llmctl.host.state import HostState, KeyState, Unit
from daemons.llmctl.top.view import engines, gpus

_STYLES = {"active": "green", "failed": "bold red", "inactive": "dim"}


def screen(state: HostState, findings: list[Finding]) -> RenderableType:
    """Units, GPUs, engines, keys, alerts, and what is wrong."""
    parts: list[RenderableType] = [_units(state.units)]
    if state.reading is not None:
        parts += [gpus(state.reading), engines(state.reading)]
    parts += [_keys(state.keys), _alerts(state), *troubles(findings)]
    if findings:
        parts.append(Text("llmctl doctor looks closer", style="dim"))
    return Group(Text(f"release {state.release or 'unknown'}", style="bold"), *parts)


def troubles(findings: list[Finding]) -> list[Text]:
    """A line for each trouble, and one for its cure."""
    lines = []
    for finding in findings:
        style = "yellow" if finding.warning else "bold red"
        word = "warning" if finding.warning else "fault"
        lines.append(Text.assemble((f"{word}: ", style), f"{finding.subject}: {finding.what}"))
        lines.append(Text(f"    {finding.cure}", style="dim"))
    return lines


def _units(units: tuple[Unit, ...]) -> Table:
    table = Table("unit", "state", "restarts", "says", box=None, pad_edge=False, header_style="bold")
    for unit in units:
        state = Text(f"{unit.active} {unit.sub}", style=_STYLES.get(unit.active, "yellow"))
        table.add_row(Text(unit.name), state, str(unit.restarts or ""), Text(unit.status[:60]))
    return table


def _keys(keys: tuple[KeyState, ...] | None) -> Text:
    if keys is None:
        return Text("keys: only root and llm-gateway may read them", style="dim")
    good = [key.name for key in keys if key.state == "good"]
    others = [f"{key.name} ({key.state})" for key in keys if key.state in {"disabled", "expired"}]
    return Text(f"keys: {len(good)} good{'; ' if others else ''}{', '.join(others)}")


def _alerts(state: HostState) -> Text:
    if state.alerts is None:
        return Text("alerts: Prometheus does not answer on this host", style="dim")
    if not state.alerts:
        return Text("alerts: none")
    return Text(f"alerts: {', '.join(alert.name for alert in state.alerts)}", style="bold yellow")
