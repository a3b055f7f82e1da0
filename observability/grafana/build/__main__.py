"""Writes the dashboards' JSON, or with ``--check`` names the files that differ."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from observability.generated import write_or_check
from observability.grafana.build import engines, gpus, host, overview, slo, tenants, traffic

FOLDER = Path(__file__).parents[1] / "dashboards"
ROOMS = (overview, traffic, engines, tenants, gpus, slo, host)


def text_of(board: builders.Dashboard) -> str:
    """The JSON of `board`, panels numbered in their order."""
    model = board.build()
    for number, panel in enumerate(model.panels or [], 1):
        panel.id_val = number
    return json.dumps(model, cls=JSONEncoder, indent=1, ensure_ascii=False) + "\n"


def wanted() -> Iterator[tuple[Path, str]]:
    """Every file and what it should hold."""
    for room in ROOMS:
        board = room.build()
        name = str(board.build().uid).removeprefix("llm-")
        yield FOLDER / f"{name}.json", text_of(board)


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` name those that differ; returns 1 when any does."""
    return write_or_check(wanted(), argv, prog="python -m observability.grafana.build", doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
