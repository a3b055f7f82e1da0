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
_WANTED = (
    "vllm:request_queue_time_seconds_bucket",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_decode_time_seconds_bucket",
    "vllm:request_decode_time_seconds_sum",
    "vllm:num_requests_",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "llm_gateway_queue_",
    "llm_gateway_overhead_seconds_bucket",
    "llm_gateway_overhead_seconds_sum",
    "llm_gateway_retries_total",
    "gpu_clock_event_active",
    "gpu_clock_limited_seconds_total",
)
"""What `attribution` asks for. Nothing else is kept: a page of vLLM has a thousand samples, every second."""
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
    lines = [line for line in text.splitlines() if line.startswith(_WANTED)]
    values: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            values[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return values


class Scraper:
    """Scrapes every source once a second; one that fails is a problem to report, no reason to stop."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._keys: dict[tuple[str, Labels], tuple[str, Labels]] = {}
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
                if response.status != 200:
                    self.problems[source.url] = f"{source.url} answered {response.status}"
                    return
                body = await response.read()
            values = parse_metrics(body.decode("utf-8", "replace"))
        except (aiohttp.ClientError, TimeoutError) as error:
            self.problems[source.url] = f"{source.url} could not be scraped ({type(error).__name__})"
        except ValueError:
            self.problems[source.url] = f"{source.url} is not in the Prometheus text format"
        else:
            # The same names and labels come every second: one copy of each serves all snapshots.
            shared = {self._keys.setdefault(key, key): value for key, value in values.items()}
            self.snapshots.append(Snapshot(source, time.time(), shared))

    def rebase(self, epoch: float) -> list[Snapshot]:
        """The snapshots with times relative to the run's start at Unix time `epoch`."""
        return [Snapshot(s.source, s.at - epoch, s.values) for s in self.snapshots]


def histogram_delta(
    first: Mapping[tuple[str, Labels], float], last: Mapping[tuple[str, Labels], float], name: str
) -> tuple[list[tuple[float, float]], float]:
    """What a histogram counted between two scrapes, over all series: (upper bound, observations up to it) of
    each bucket, and the sum of the observations.
    """
    buckets = {key: value for key, value in last.items() if key[0] == f"{name}_bucket"}
    # A series of which any bucket went back was restarted: all it shows is new.
    restarted = {
        _series(labels)
        for (sample, labels), value in buckets.items()
        if value < first.get((sample, labels), 0.0)
    }

    def increase(key: tuple[str, Labels], value: float) -> float:
        return value - (0.0 if _series(key[1]) in restarted else first.get(key, 0.0))

    bounds: dict[float, float] = {}
    for key, value in buckets.items():
        bound = float(dict(key[1])["le"])
        bounds[bound] = bounds.get(bound, 0.0) + increase(key, value)
    total = sum(increase(key, value) for key, value in last.items() if key[0] == f"{name}_sum")
    return sorted(bounds.items()), total


def _series(labels: Labels) -> Labels:
    return tuple(label for label in labels if label[0] != "le")


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


def percentile_bucket(buckets: Sequence[tuple[float, float]], percent: float) -> tuple[float, float | None]:
    """Bounds of the bucket that a percentile lies in; None is without end."""
    rank, low = buckets[-1][1] * percent / 100, 0.0
    for bound, count in buckets:
        if count >= rank:
            return low, None if bound == float("inf") else bound
        low = bound
    return low, None
