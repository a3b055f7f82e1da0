"""Reading systemd unit files for the tests: sections with repeated keys, time spans."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).parents[3]
SYSTEMD = REPO / "systemd"
_SPAN = re.compile(r"(\d+)\s*(h|min|ms|s)?")
_SECONDS = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 0.001, "": 1.0}


@dataclass
class Unit:
    """One unit file: the values of every key, in order, by section."""

    name: str
    sections: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def all(self, section: str, key: str) -> list[str]:
        """Every value of `key`, in order."""
        return self.sections.get(section, {}).get(key, [])

    def one(self, section: str, key: str) -> str:
        """The only value of `key`."""
        values = self.all(section, key)
        assert len(values) == 1, f"{self.name}: {key}= is given {len(values)} times"
        return values[0]

    def seconds(self, section: str, key: str) -> float:
        """The time span `key`, in seconds."""
        return seconds(self.one(section, key))


def seconds(span: str) -> float:
    """A time span of systemd.time(7) in seconds."""
    if span == "infinity":
        return float("inf")
    parts = _SPAN.findall(span)
    assert parts, f"no time span: {span!r}"
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def parse(text: str, name: str) -> Unit:
    """The unit in `text`."""
    unit, section = Unit(name), ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        if stripped.startswith("["):
            section = stripped.strip("[]")
            unit.sections.setdefault(section, defaultdict(list))
            continue
        key, equals, value = stripped.partition("=")
        assert equals, f"{name}:{number}: no assignment: {line!r}"
        unit.sections[section][key.strip()].append(value.strip())
    return unit


def read(name: str) -> Unit:
    """The unit `name` of the folder ``systemd/``."""
    return parse((SYSTEMD / name).read_text(), name)


def names(*suffixes: str) -> list[str]:
    """The unit files with one of `suffixes`, or all."""
    kinds = suffixes or (".service", ".socket", ".slice", ".target")
    return sorted(path.name for path in SYSTEMD.iterdir() if path.suffix in kinds)


def known_to_249() -> set[str]:
    """``Section.Key`` of every directive that systemd 249 reads (Ubuntu 22.04's)."""
    return set((Path(__file__).parent / "systemd-249-directives.txt").read_text().split())
