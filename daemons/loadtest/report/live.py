"""What is shown while a run goes on: a display on a terminal, a line every few seconds elsewhere."""

from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daemons.loadtest.client.frames import Progress
from daemons.loadtest.client.records import FAILURES, Outcome, Records
from daemons.loadtest.measure.histogram import Histogram
from daemons.loadtest.report.text import milliseconds

_BARS = "▁▂▃▄▅▆▇█"
_WINDOW = 5.0
_LINE_EVERY = 5.0
_SPARK_POINTS = 60


class Figures:
    """Running figures of a run; `planned` are the seconds of sending, where they are known."""

    def __init__(self, planned: float | None = None) -> None:
        self._planned = planned
        self.ttft, self.e2e, self.itl = Histogram(), Histogram(), Histogram()
        self.outcomes: dict[str, int] = {}
        self.ok = self.failed = 0
        self.lag = 0.0
        self.last: Progress | None = None
        self.per_second: deque[float] = deque(maxlen=_SPARK_POINTS)
        self._recent: deque[tuple[float, int, float]] = deque([(0.0, 0, 0.0)])
        self._ended = 0
        self._second = 0

    def take(self, records: Records, progress: Progress) -> None:
        """Take the requests that ended since the last time."""
        for record, gaps in records.with_gaps():
            self.lag = max(self.lag, record.sent - record.due)
            if record.outcome == Outcome.OK:
                self.ok += 1
                self.e2e.extend((record.end - record.intended,))
                if record.first == record.first:  # NaN when nothing was streamed
                    self.ttft.extend((record.first - record.intended,))
                self.itl.extend(gaps)
            else:
                name = Outcome(record.outcome).name.lower().replace("_", " ")
                self.outcomes[name] = self.outcomes.get(name, 0) + 1
                self.failed += record.outcome in FAILURES
        self.last = progress
        self._ended += len(records)
        self._recent.append((progress.at, self._ended, progress.tokens))
        while progress.at - self._recent[0][0] > _WINDOW:
            self._recent.popleft()
        if int(progress.at) > self._second:
            self._second = int(progress.at)
            self.per_second.append(self.request_rate)

    @property
    def clock(self) -> str:
        """Where the run stands."""
        at = self.last.at if self.last is not None else 0.0
        if self._planned is None:
            return f"{at:.0f} s"
        return (
            f"{at:.0f} of {self._planned:.0f} s" if at < self._planned else f"{at:.0f} s, awaiting the last"
        )

    @property
    def request_rate(self) -> float:
        """Requests that ended, a second, lately."""
        return self._rate(1)

    @property
    def token_rate(self) -> float:
        """Output tokens a second, lately; see `Progress.tokens`."""
        return self._rate(2)

    def _rate(self, column: int) -> float:
        first, last = self._recent[0], self._recent[-1]
        span = last[0] - first[0]
        return max(0.0, (last[column] - first[column]) / span) if span else 0.0

    def line(self) -> str:
        """Everything in one line."""
        if self.last is None:
            return "starting"
        parts = [
            self.clock,
            f"{self.request_rate:.1f} req/s",
            f"{self.token_rate:.0f} tok/s",
            f"in flight {self.last.in_flight}",
        ]
        if self.last.backlog:
            parts.append(f"waiting {self.last.backlog}")
        for name, histogram in (("TTFT", self.ttft), ("E2E", self.e2e)):
            if histogram.total:
                shown = "/".join(milliseconds(histogram.percentile(p)) for p in (50, 95, 99))
                parts.append(f"{name} P50/95/99 {shown} ms")
        parts.append(f"ok {self.ok} failed {self.failed}")
        return "  ".join(parts)


def sparkline(values: Sequence[float]) -> str:
    """The values as bars, from 0 to their maximum."""
    top = max(values, default=0.0)
    if top <= 0:
        return ""
    return "".join(_BARS[min(len(_BARS) - 1, int(v / top * (len(_BARS) - 1) + 0.5))] for v in values)


class LiveDisplay:
    """`Observer` for a terminal."""

    def __init__(self, console: Console) -> None:
        self._figures = Figures()
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def begin(self, planned: float | None) -> None:
        """See `Observer`."""
        self._figures = Figures(planned)
        self._live.start()

    def progress(self, records: Records, progress: Progress) -> None:
        """See `Observer`."""
        self._figures.take(records, progress)
        self._live.update(render(self._figures), refresh=True)

    def end(self) -> None:
        """See `Observer`."""
        self._live.stop()

    def note(self, text: str) -> None:
        """See `Observer`."""
        self._live.console.print(text, style="dim")


def render(figures: Figures) -> RenderableType:
    """The live display."""
    last = figures.last
    if last is None:
        return Text("starting")
    head = Text(
        f"{figures.clock}   {figures.request_rate:,.1f} req/s   {figures.token_rate:,.0f} tok/s   in flight "
        f"{last.in_flight:,}   waiting {last.backlog:,}   lag max {milliseconds(figures.lag)} ms"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("ms", "P50", "P95", "P99", "max"):
        table.add_column(name, justify="left" if name == "ms" else "right")
    rows = (("time to first token", figures.ttft), ("inter-token", figures.itl), ("end to end", figures.e2e))
    for name, histogram in rows:
        table.add_row(name, *(milliseconds(histogram.percentile(p)) for p in (50, 95, 99, 100)))
    counts = Text(f"ok {figures.ok:,}   failed {figures.failed:,}", "red" if figures.failed else "green")
    for name, count in figures.outcomes.items():
        counts.append(f"   {name} {count:,}")
    spark = Text(f"req/s {sparkline(figures.per_second)}", "cyan")
    return Group(head, table, counts, spark, Text("Ctrl-C ends the run, twice at once", "dim"))


class PlainLines:
    """`Observer` for anything that is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._figures = Figures()
        self._shown = 0.0

    def begin(self, planned: float | None) -> None:
        """See `Observer`."""
        self._figures, self._shown = Figures(planned), 0.0

    def progress(self, records: Records, progress: Progress) -> None:
        """See `Observer`."""
        self._figures.take(records, progress)
        if progress.at - self._shown >= _LINE_EVERY:
            self._shown = progress.at
            self._console.print(self._figures.line(), soft_wrap=True, highlight=False)

    def end(self) -> None:
        """See `Observer`."""

    def note(self, text: str) -> None:
        """See `Observer`."""
        self._console.print(text)
