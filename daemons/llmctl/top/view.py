"""A reading on a terminal of 80 columns."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from daemons.llmctl.top.readings import Engine, Gpu, Reading
from daemons.runtime.cli import counted

_GIB = 1 << 30
_BAR = 8
_MAX_KEYS = 8
_HOT = 0.9
_GAP = Text("")


def screen(reading: Reading, *, live: bool = False) -> RenderableType:
    """Everything, top to bottom: GPUs, engines, keys, what is silent, how to leave it when `live`."""
    parts: list[RenderableType] = [gpus(reading), _GAP, engines(reading), _GAP]
    if reading.keys:
        parts += [_keys(reading), _GAP]
    if reading.silent:
        parts.append(Text(f"no answer: {', '.join(reading.silent)}", style="yellow"))
    if live:
        parts.append(Text("q quits", style="dim"))
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, width=80, header_style="bold")
    for number, column in enumerate(columns):
        right = number > 0 and not column.endswith("<")
        table.add_column(column.rstrip("<"), justify="right" if right else "left", no_wrap=True)
    return table


def gpus(reading: Reading) -> RenderableType:
    """A row for each GPU, or why there is none."""
    if not reading.gpus:
        state = reading.nvml.replace("_", " ") or "the exporter does not answer"
        return Text("no GPU" if state == "ok" else f"no GPU data: {state}", style="yellow")
    table = _table("GPU", "name<", "util<", "memory GiB", "power W", "°C", "notes<")
    for gpu in reading.gpus:
        table.add_row(*_gpu(gpu))
    return table


def _gpu(gpu: Gpu) -> tuple[Text, ...]:
    index, name = gpu.index or "?", gpu.name.removeprefix("NVIDIA ")[:18] or gpu.uuid[:18]
    if not gpu.up:
        note = Text(gpu.fault or "down", style="bold red")
        return (Text(index), Text(name), Text("-"), Text("-"), Text("-"), Text("-"), note)
    return (
        Text(index),
        Text(name),
        _bar(gpu.utilization),
        Text(f"{_gib(gpu.memory_used)}/{_gib(gpu.memory_total)}"),
        Text(f"{_whole(gpu.power_watts)}/{_whole(gpu.power_limit_watts)}"),
        Text(_whole(gpu.temperature_celsius)),
        Text(",".join(gpu.clock_events)[:18], style="yellow"),
    )


def engines(reading: Reading) -> RenderableType:
    """A row for each engine, and the queue."""
    table = _table("engine", "state<", "GPU<", "tok/s", "running", "waiting", "KV<")
    for engine in reading.engines:
        table.add_row(*_engine(engine))
    if reading.queue is not None:
        table.caption = f"waiting at the gateway: {counted(round(reading.queue), 'request')}"
        table.caption_justify = "left"
    return table


def _engine(engine: Engine) -> tuple[Text, ...]:
    return (
        Text(engine.name[:24]),
        Text(engine.state, style="green" if engine.state == "ready" else "yellow"),
        Text(",".join(engine.gpus) or "-"),
        Text(_whole(engine.tokens_per_second)),
        Text(_whole(engine.running)),
        Text(_whole(engine.waiting)),
        _bar(engine.kv_used),
    )


def _keys(reading: Reading) -> RenderableType:
    table = _table("key", "tok/s", "running")
    for key in reading.keys[:_MAX_KEYS]:
        table.add_row(Text(key.name[:40]), Text(_whole(key.tokens_per_second)), Text(_whole(key.in_flight)))
    if (more := len(reading.keys) - _MAX_KEYS) > 0:
        table.caption, table.caption_justify = f"and {more} more", "left"
    return table


def _bar(share: float | None) -> Text:
    if share is None:
        return Text("-")
    filled = round(min(max(share, 0.0), 1.0) * _BAR)
    style = "red" if share >= _HOT else "green"
    return Text.assemble(("█" * filled, style), ("░" * (_BAR - filled), "dim"), f" {share:4.0%}")


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / _GIB:.1f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
