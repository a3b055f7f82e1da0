"""Writes each role's ``defaults/main.yml`` and ``README.md`` from its argument specification.

``python ansible/tools/document_roles.py`` writes them, ``--check`` only says which are not up to date.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).parents[1] / "roles"
_HEADER = """---
# yamllint disable rule:line-length
# Made by tools/document_roles.py from meta/argument_specs.yml.
"""


class _Indented(yaml.SafeDumper):
    """Lists indented below their key, as yamllint wants them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _specification(role: Path) -> dict[str, Any]:
    text = (role / "meta/argument_specs.yml").read_text(encoding="utf-8")
    specification: dict[str, Any] = yaml.safe_load(text)["argument_specs"]["main"]
    return specification


def defaults(role: Path) -> str:
    """The text of the role's ``defaults/main.yml``."""
    options = _specification(role).get("options", {})
    given = {name: option["default"] for name, option in options.items() if "default" in option}
    return _HEADER + yaml.dump(given, Dumper=_Indented, sort_keys=False, width=10_000, allow_unicode=True)


def readme(role: Path) -> str:
    """The text of the role's ``README.md``."""
    specification = _specification(role)
    lines = [f"# {role.name}", "", f"{specification['short_description']}.", ""]
    lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, option in specification.get("options", {}).items():
        default = yaml.safe_dump(option.get("default"), default_flow_style=True, width=10_000)
        shown = default.removesuffix("\n").removesuffix("\n...").replace("|", "\\|")
        choices = f"; one of {', '.join(map(str, option['choices']))}" if "choices" in option else ""
        meaning = " ".join(option["description"].split())
        lines.append(f"| `{name}` | {option['type']}{choices} | `{shown}` | {meaning} |")
    return "\n".join(lines) + "\n"


def wanted() -> Iterator[tuple[Path, str]]:
    """Every made file and what it should hold."""
    for role in sorted(ROLES.iterdir()):
        if (role / "meta/argument_specs.yml").is_file():
            yield role / "defaults/main.yml", defaults(role)
            yield role / "README.md", readme(role)


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with ``--check`` name those that differ; returns 1 when any does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args(argv).check
    stale = [
        (path, text)
        for path, text in wanted()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        if check:
            print(f"{path} is not up to date: run ansible/tools/document_roles.py", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
