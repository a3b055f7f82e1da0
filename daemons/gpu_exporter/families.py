"""Metric families and their text form (Prometheus text exposition format 0.0.4)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

Labels = tuple[tuple[str, str], ...]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Kind(StrEnum):
    """The types of a family that are in use."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One metric family.

    Attributes:
        name: frozen once released; base units; a counter ends in ``_total``.
        help: one line, with the meaning of the labels.
        header: its ``HELP`` and ``TYPE`` lines.
    """

    name: str
    kind: Kind
    help: str
    header: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        header = f"# HELP {self.name} {escape_help(self.help)}\n# TYPE {self.name} {self.kind}\n"
        object.__setattr__(self, "header", header)

    def __call__(self, value: float, *labels: tuple[str, str]) -> "Sample":
        return Sample(self, value, labels)


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of `family`; `labels` come after those of the GPU."""

    family: Family
    value: float
    labels: Labels = ()


def gauge(name: str, text: str) -> Family:
    """A family of gauges."""
    return Family(name, Kind.GAUGE, text)


def counter(name: str, text: str) -> Family:
    """A family of counters."""
    return Family(name, Kind.COUNTER, text)


def escape_help(text: str) -> str:
    """`text` as it stands in a ``HELP`` line."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def escape_label(text: str) -> str:
    """`text` as it stands between the quotes of a label value."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def format_labels(labels: Iterable[tuple[str, str]]) -> str:
    """``{a="b",c="d"}``, or nothing when there are none."""
    inner = ",".join(f'{key}="{escape_label(value)}"' for key, value in labels)
    return f"{{{inner}}}" if inner else ""


def format_sample(sample: Sample, labels: Labels = ()) -> str:
    """One line; `labels` come first."""
    return f"{sample.family.name}{format_labels((*labels, *sample.labels))} {sample.value!r}\n"


def render(samples: Iterable[Sample]) -> str:
    """`samples` as text, grouped by family in the order in which families first appear."""
    grouped: dict[Family, list[str]] = {}
    for sample in samples:
        grouped.setdefault(sample.family, []).append(format_sample(sample))
    return "".join(family.header + "".join(lines) for family, lines in grouped.items())
