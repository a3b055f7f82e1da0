"""Renders the rules with the role's defaults: ``python -m observability.prometheus.render [--check]``.

On a host Ansible renders the same templates with the inventory's thresholds. What is written here is what
`make monitoring` uses and what promtool tests; it is committed, so that the rules can be read as they are.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import yaml

from observability.generated import write_or_check

HERE = Path(__file__).parent
RULES = HERE / "rules"
DEFAULTS = HERE.parents[1] / "ansible/roles/prometheus/defaults/main.yml"

_HEADER = "# Rendered from {name} with the defaults of the role prometheus: make rules\n"


def defaults() -> dict[str, Any]:
    """The thresholds, as the role documents them."""
    values: dict[str, Any] = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    return values


def render(template: Path, variables: dict[str, Any]) -> str:
    """`template` as the role's task renders it.

    Raises:
        jinja2.UndefinedError: it asks for a variable that is not there.
    """
    environment = jinja2.Environment(
        block_start_string="[%",
        block_end_string="%]",
        variable_start_string="[[",
        variable_end_string="]]",
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - YAML, no HTML
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(variables)


def wanted() -> Iterator[tuple[Path, str]]:
    """Every rendered file and what it should hold."""
    variables = defaults()
    for template in sorted(RULES.glob("*.yml.j2")):
        yield template.with_suffix(""), _HEADER.format(name=template.name) + render(template, variables)


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` name those that differ; returns 1 when any does."""
    return write_or_check(wanted(), argv, prog="python -m observability.prometheus.render", doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
