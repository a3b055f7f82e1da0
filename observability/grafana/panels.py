"""The dashboards as they are committed, read back: panels, queries, variables."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"

Board = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel."""

    ref: str
    expr: str
    legend: str
    instant: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; a row is none."""

    title: str
    description: str
    kind: str
    unit: str
    grid: Mapping[str, int]
    queries: tuple[Query, ...]
    defaults: Mapping[str, Any]
    raw: Mapping[str, Any]


def boards() -> dict[str, Board]:
    """Every dashboard by the name of its file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def panels(board: Board) -> Iterator[Panel]:
    """The panels of `board`."""
    for raw in board["panels"]:
        if raw["type"] == "row":
            continue
        defaults = raw.get("fieldConfig", {}).get("defaults", {})
        yield Panel(
            title=raw.get("title", ""),
            description=raw.get("description", ""),
            kind=raw["type"],
            unit=defaults.get("unit", ""),
            grid=raw["gridPos"],
            queries=tuple(
                Query(one["refId"], one["expr"], one.get("legendFormat", ""), one["instant"])
                for one in raw.get("targets", [])
            ),
            defaults=defaults,
            raw=raw,
        )


def rows(board: Board) -> Iterator[tuple[str, int]]:
    """Headings and their vertical positions."""
    for raw in board["panels"]:
        if raw["type"] == "row":
            yield raw["title"], raw["gridPos"]["y"]


def variables(board: Board) -> list[str]:
    """Names of the template variables of `board`."""
    return [one["name"] for one in board["templating"]["list"]]


def filled(expr: str, interval: str, time_range: str) -> str:
    """`expr` with every variable set to All, rates over `interval`, and `time_range` as the time shown."""
    expr = expr.replace("$__rate_interval", interval).replace("$__range", time_range)
    for name in ("host", "model", "engine", "key"):
        expr = expr.replace(f'"${name}"', '".*"')
    return expr
