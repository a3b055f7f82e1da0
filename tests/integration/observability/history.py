"""A past for Prometheus: what a page's series were, with the noise of a busy service, written as blocks."""

import contextlib
import random
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from observability.prometheus.client import Points, Prometheus
from observability.prometheus.local import config
from tests.integration.engine.conftest import wait_for
from tests.integration.observability.lab import answers, watching
from tests.integration.observability.large import Page
from tests.support.ports import free_port

SCRAPE_SECONDS = 15
KEPT_FOR_EVER = "--storage.tsdb.retention.time=100y"

_COUNTER = re.compile(r".*_(total|count|sum)")
_QUIET = re.compile(
    r".*(nvlink|xid|ecc|remap|retired|replay|fail|drop|error|restart|hang|_max_|_total_bytes).*"
)
_MOMENT = re.compile(r".*(timestamp|boot_time|start_time|expiry|created).*")
_IDLE_SHARE = {"llm_gateway_tokens_total": 0.5}
"""A key does not use every model."""


@dataclass(frozen=True, slots=True)
class Course:
    """A series as its target tells it, the labels that Prometheus adds, and its value at each scrape."""

    name: str
    labels: dict[str, str]
    added: dict[str, str]
    values: Sequence[float]

    def stored(self) -> str:
        """The series as Prometheus stores it."""
        own = {f"exported_{key}" if key in self.added else key: value for key, value in self.labels.items()}
        return series(self.name, own | self.added)


def series(name: str, labels: dict[str, str]) -> str:
    """A series as its text format writes it."""
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


def courses(
    page: Page, instance: str, host: str, scrapes: int, wanted: Callable[[Sample], bool]
) -> Iterator[Course]:
    """What those series of `page` that are `wanted` were over a number of `scrapes`."""
    chance = random.Random(page.path)  # noqa: S311 - readings, no secrets
    added = {"host": host, "job": page.job, "instance": instance, **page.labels}
    histograms: dict[str, _Arrivals] = {}
    for family in text_string_to_metric_families(page.text):
        for sample in family.samples:
            if not wanted(sample):
                continue
            stem, _, part = sample.name.rpartition("_")
            values: Iterable[float]
            if family.type == "histogram":
                one = series(stem, {key: value for key, value in sample.labels.items() if key != "le"})
                if one not in histograms:
                    histograms[one] = _Arrivals(chance, scrapes, 0.3 if "seconds" in stem else 100)
                values = histograms[one].counted(part, sample.labels.get("le", "+Inf"))
            elif _COUNTER.fullmatch(sample.name):
                values = _counted(sample.name, scrapes, chance)
            else:
                values = _measured(sample.name, sample.value, scrapes, chance)
            yield Course(sample.name, sample.labels, added, list(values))


class _Arrivals:
    """What one histogram was told at each scrape: values about `middle`, a few of them large."""

    def __init__(self, chance: random.Random, scrapes: int, middle: float) -> None:
        pace = chance.uniform(0.2, 6)
        self._told = [
            [middle * share / (1 - share) for share in (chance.random() for _ in range(_about(pace, chance)))]
            for _ in range(scrapes)
        ]

    def counted(self, part: str, bound: str) -> Iterable[float]:
        """The course of the histogram's part ``bucket`` (with its `bound`), ``count`` or ``sum``."""
        if part == "sum":
            return accumulate(sum(told) for told in self._told)
        most = float(bound)
        return accumulate(sum(value <= most for value in told) for told in self._told)


def _counted(name: str, scrapes: int, chance: random.Random) -> Iterator[float]:
    idle = _QUIET.fullmatch(name) or chance.random() < _IDLE_SHARE.get(name, 0.1)
    pace = chance.uniform(0.5, 2000 if "tokens" in name else 200)
    value = float(chance.randrange(10**6))
    for _ in range(scrapes):
        if not idle:
            value += _about(pace, chance) / (100 if "seconds" in name else 1)
        yield value


def _measured(name: str, first: float, scrapes: int, chance: random.Random) -> Iterator[float]:
    step = next((step for suffix, step in _STEPS.items() if name.endswith(suffix)), None)
    if step is None or _QUIET.fullmatch(name) or _MOMENT.fullmatch(name):
        yield from [first] * scrapes
        return
    value = first
    for _ in range(scrapes):
        if step:
            value = max(0.0, value + step * chance.randint(-3, 3))
            yield round(value, 6)
        else:
            yield first * chance.uniform(0.5, 1.5) or chance.random()


_STEPS: dict[str, float] = {
    "_ratio": 0.01,
    "_perc": 0.001,
    "_watts": 0.137,
    "_celsius": 1,
    "_hertz": 15e6,
    "_bytes": 4096,
    "_bytes_per_second": 1024,
    "_in_flight": 1,
    "_depth": 1,
    "_running": 1,
    "_waiting": 1,
    "_seconds": 0,
}
"""By how much a gauge moves at once, by the end of its name; 0: it is another number each time."""


def _about(pace: float, chance: random.Random) -> int:
    return int(chance.random() * 2 * pace + 0.5)


def add(lines: Iterable[tuple[str, Points]], folder: Path, hours: int = 31 * 24) -> None:
    """Put series into the data of the Prometheus that works in `folder`, as blocks of `hours` at most."""
    file = folder / "past.om"
    with file.open("w") as out:
        for name, points in lines:
            out.writelines(f"{name} {value!r} {at:.3f}\n" for at, value in points)
        out.write("# EOF\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", f"--max-block-duration={hours}h"]
    subprocess.run([*command, "--quiet", file, folder / "tsdb"], check=True)


@contextlib.contextmanager
def idle(folder: Path) -> Iterator[tuple[Prometheus, int]]:
    """A Prometheus that does nothing on what was added in `folder`, and its process."""
    settings = config({}, folder / "none", "15s")
    with watching(folder, settings, free_port(), KEPT_FOR_EVER) as (prometheus, process):
        wait_for(lambda: answers(prometheus, 0), 60)
        yield prometheus, process
