"""Turns readings into text: each line is made once a reading, each prefix once in the life of a worker."""

from collections.abc import Iterable

from daemons.gpu_exporter.families import Family, Labels, Sample, format_labels

_MAX_CACHED = 20_000


class Lines:
    """Renders samples of a GPU; keeps the constant part of every line."""

    def __init__(self) -> None:
        self._prefixes: dict[tuple[Labels, Family, Labels], str] = {}

    def texts(self, labels: Labels, samples: Iterable[Sample]) -> dict[Family, str]:
        """The lines of `samples` under `labels`, by family."""
        lines: dict[Family, list[str]] = {}
        for sample in samples:
            lines.setdefault(sample.family, []).append(self._line(labels, sample))
        return {family: "".join(parts) for family, parts in lines.items()}

    def _line(self, labels: Labels, sample: Sample) -> str:
        key = (labels, sample.family, sample.labels)
        prefix = self._prefixes.get(key)
        if prefix is None:
            if len(self._prefixes) >= _MAX_CACHED:
                self._prefixes.clear()
            prefix = f"{sample.family.name}{format_labels((*labels, *sample.labels))} "
            self._prefixes[key] = prefix
        return f"{prefix}{sample.value!r}\n"


def document(families: Iterable[Family], readings: Iterable[dict[Family, str]]) -> str:
    """The texts of `readings` in the order of `families`, each family in one block under its header."""
    merged: dict[Family, list[str]] = {}
    for reading in readings:
        for family, text in reading.items():
            merged.setdefault(family, []).append(text)
    parts: list[str] = []
    for family in families:
        if family in merged:
            parts.append(family.header)
            parts += merged[family]
    return "".join(parts)
