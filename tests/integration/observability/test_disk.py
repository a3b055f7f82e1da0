"""What a sample takes on disk, and whether the budget of the role prometheus is enough for its retention."""

import json
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from observability.prometheus.client import Points
from observability.prometheus.render import defaults
from tests.integration.observability import history, large
from tests.integration.observability.lab import HOST, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}: apt-get install {missing()}")

HOSTS = 3
"""Large hosts that one monitoring host's budget is for, as docs/monitoring.md says."""

SERIES = 23_000
"""Of a large host and what is recorded of it: test_cardinality.py."""

START = 1_700_006_400


def past(scrapes: int, share: int) -> Iterator[tuple[str, Points]]:
    """One of `share` series of a large host under load."""
    moments = [START + history.SCRAPE_SECONDS * number for number in range(scrapes)]
    wanted = chain.from_iterable(repeat((True, *repeat(False, share - 1))))
    for page in large.pages():
        for course in history.courses(page, "127.0.0.1:9100", HOST, scrapes, lambda _: next(wanted)):
            yield course.stored(), list(zip(moments, course.values, strict=True))


@pytest.mark.parametrize(
    ("hours", "share"),
    [(4, 40), pytest.param(24, 16, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_the_budget_holds_what_is_kept(hours: int, share: int, tmp_path: Path) -> None:
    history.add(past(hours * 3600 // history.SCRAPE_SECONDS, share), tmp_path, hours)
    samples = sum(
        json.loads(path.read_text())["stats"]["numSamples"]
        for path in (tmp_path / "tsdb").glob("*/meta.json")
    )
    parts = {"samples": "*/chunks/*", "index": "*/index"}
    each = {
        part: sum(path.stat().st_size for path in (tmp_path / "tsdb").glob(pattern)) / samples
        for part, pattern in parts.items()
    }
    assert defaults()["prometheus_interval"] == f"{history.SCRAPE_SECONDS}s"
    days, budget = (
        int(defaults()[f"prometheus_retention{name}"].rstrip(unit))
        for name, unit in (("", "d"), ("_size", "GB"))
    )
    host = SERIES * days * 86400 / history.SCRAPE_SECONDS * sum(each.values())
    print(f"{samples} samples; bytes a sample: {each}; {host / 1e9:.1f} GB a host in {days} days")
    assert samples > SERIES
    assert host * HOSTS < budget * 2**30
