"""Scrapes the metrics of gateway, engines and GPUs while a load runs."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

Kind = Literal["gateway", "engine", "gpu"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EVERY = 1.0
TIMEOUT = 2.0
_PREFIXES = (
    "vllm:",
    "llm_gateway_",
    "gpu_clock",
    "gpu_temperature",
    "gpu_power",
    "gpu_utilization",
    "DCGM_FI_DEV_CLOCK",
)
_LIMIT = 16 << 20
Labels = tuple[tuple[str, str], ...]


class Source(msgspec.Struct, frozen=True):
    """An endpoint in the Prometheus text format."""

    kind: Kind
    url: str


class Snapshot(msgspec.Struct):
    """One scrape of one source: values by sample name and labels."""

    source: Source
    at: float
    """Seconds since the run's start."""
    values: dict[tuple[str, Labels], float]

    def total(self, name: str) -> float | None:
        """The sum of all series called `name`; None when there is none."""
        found = [value for (sample, _), value in self.values.items() if sample == name]
        return sum(found) if found else None


def parse_metrics(text: str) -> dict[tuple[str, Labels], float]:
    """The samples that matter here.

    Raises:
        ValueError: the text is not in the Prometheus format.
    """
    lines = [line for line in text.splitlines() if line.startswith(_PREFIXES)]
    values: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                values[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return values


class Scraper:
    """Scrapes every source once a second; one that fails is a problem to report, no reason to stop."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self.snapshots: list[Snapshot] = []
        self.problems: dict[str, str] = {}

    async def run(self) -> None:
        """Scrape until cancelled."""
        if not self._sources:
            return
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                began = time.monotonic()
                await asyncio.gather(*(self._scrape(session, source) for source in self._sources))
                await asyncio.sleep(max(0.0, began + EVERY - time.monotonic()))

    async def last(self) -> None:
        """One more scrape, at the end of the run."""
        if not self._sources:
            return
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await asyncio.gather(*(self._scrape(session, source) for source in self._sources))

    async def _scrape(self, session: aiohttp.ClientSession, source: Source) -> None:
        try:
            async with session.get(source.url, allow_redirects=False) as response:
                body = await response.content.read(_LIMIT)
                if response.status != 200:
                    self.problems[source.url] = f"{source.url} answered {response.status}"
                    return
            values = parse_metrics(body.decode("utf-8", "replace"))
        except (aiohttp.ClientError, TimeoutError) as error:
            self.problems[source.url] = f"{source.url} could not be scraped ({type(error).__name__})"
        except ValueError:
            self.problems[source.url] = f"{source.url} is not in the Prometheus text format"
        else:
            self.snapshots.append(Snapshot(source, time.time(), values))

    def rebase(self, epoch: float) -> list[Snapshot]:
        """The snapshots with times relative to the run's start at Unix time `epoch`."""
        return [Snapshot(s.source, s.at - epoch, s.values) for s in self.snapshots]


def histogram_delta(
    first: Mapping[tuple[str, Labels], float], last: Mapping[tuple[str, Labels], float], name: str
) -> list[tuple[float, float]]:
    """What a histogram counted between two scrapes: (upper bound, observations up to it), over all series."""
    bounds: dict[float, float] = {}
    for (sample, labels), value in last.items():
        if sample == f"{name}_bucket":
            bound = float(dict(labels)["le"])
            before = first.get((sample, labels), 0.0)
            # A counter that went back was restarted: all it shows is new.
            bounds[bound] = bounds.get(bound, 0.0) + (value - before if value >= before else value)
    return sorted(bounds.items())


def bucket_percentile(buckets: Sequence[tuple[float, float]], percent: float) -> float:
    """A percentile of cumulative buckets, as Prometheus' histogram_quantile has it; 0 if empty."""
    if not buckets or not buckets[-1][1]:
        return 0.0
    rank = buckets[-1][1] * percent / 100
    low = seen = 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == float("inf"):
                return low
            return low + (bound - low) * ((rank - seen) / (count - seen) if count > seen else 1.0)
        low, seen = bound, count
    return low
