"""Counters over workers that follow each other: each count is shown once and never taken back."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.metrics import Metrics
from daemons.gateway.succession import Word
from daemons.gateway.totals import SECTION, Totals

LABELS = ("m", "chat", "default", "ok")


class Worker:
    """A worker that counts, and tells its successor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now = 0.0
        self.metrics = Metrics()
        self.totals = Totals(self.metrics, lambda: self.now)
        self.number = 0

    def work(self, requests: int) -> None:
        """Serve some requests."""
        for _ in range(requests):
            self.metrics.requests.add(LABELS)
            self.metrics.series("m", "chat", "default").duration.note(0.2)

    def word(self, *, last: bool = False) -> Word:
        """What it says of itself."""
        self.number += 1
        sections = {SECTION: self.totals.telling()}
        return Word(worker=self.name, number=self.number, last=last, sections=sections)

    def shown(self) -> float:
        """The requests that a scrape sees."""
        samples: defaultdict[str, float] = defaultdict(float)
        for sample in (s for f in self.totals.collect() for s in f.samples):
            if sample.labels.get("le") in {None, "+Inf"}:
                samples[sample.name] += sample.value
        assert samples["llm_gateway_requests_total"] == samples["llm_gateway_request_seconds_count"]
        return samples["llm_gateway_requests_total"]


steps = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=20)


@given(steps, st.data())
def test_three_workers_in_a_row(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    """Each drains while its successors serve; words reach whoever serves at that time."""
    workers = [Worker(str(i)) for i in range(3)]
    workers[0].work(1)
    served, seen, total, ended = 0, 1.0, 1, set[int]()
    for who, requests in steps:
        if who == served + 1:
            # The successor serves, and hears its predecessor before the first scrape.
            served = who
            workers[served].totals.hear(workers[served - 1].word())
        if who not in ended and who <= served:
            workers[who].work(requests)
            total += requests
        for older in set(range(served)) - ended:
            if data.draw(st.booleans()):
                last = data.draw(st.booleans())
                word = workers[older].word(last=last)
                for _ in range(data.draw(st.integers(1, 2))):
                    workers[served].totals.hear(word)
                if last:
                    ended.add(older)
        assert workers[served].shown() >= seen
        seen = workers[served].shown()
    for older in set(range(served)) - ended:
        workers[served].totals.hear(workers[older].word(last=True))
    assert workers[served].shown() == total


def test_a_worker_killed_while_it_drains_has_nothing_in_flight() -> None:
    old, new = Worker("old"), Worker("new")
    old.work(2)
    old.metrics.series("m", "chat", "default").in_flight = 3

    def in_flight() -> float:
        families = {f.name: f for f in new.totals.collect()}
        return sum(s.value for s in families["llm_gateway_requests_in_flight"].samples)

    new.totals.hear(old.word())
    assert in_flight() == 3
    new.now = 60
    assert in_flight() == 0
    assert new.shown() == 2


def test_what_another_release_counts_otherwise_is_left_out() -> None:
    old, new = Worker("old"), Worker("new")
    old.work(1)
    series = old.metrics.series("m", "chat", "default")
    series.ttft._counts = [1, 2, 3]
    new.totals.hear(old.word(last=True))
    assert new.shown() == 1


def test_what_has_not_happened_yet_is_shown_while_a_predecessor_drains() -> None:
    old, new = Worker("old"), Worker("new")
    for worker in (old, new):
        worker.metrics.expect(["m"])

    def outcomes() -> int:
        return sum(
            sample.name == "llm_gateway_requests_total"
            for family in new.totals.collect()
            for sample in family.samples
        )

    alone = outcomes()
    new.totals.hear(old.word())
    assert outcomes() == alone > 0
