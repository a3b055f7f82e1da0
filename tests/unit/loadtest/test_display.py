"""What is shown while a load test runs, and its plots."""

import io
from array import array

import pytest
from rich.console import Console

from daemons.loadtest.client.frames import Progress
from daemons.loadtest.client.records import Outcome, Records
from daemons.loadtest.report.live import Figures, render, sparkline
from daemons.loadtest.report.svg import line_plot, ticks
from tests.unit.loadtest.runs import record


def test_the_live_display_shows_what_happened() -> None:
    records = Records()
    records.add(record(0, 0.1), array("f", [0.01]))
    records.add(record(0, 0.1, Outcome.RATE_LIMITED), array("f"))
    figures = Figures()
    assert figures.line() == "starting"
    figures.take(
        records,
        Progress(
            at=1.5, in_flight=7, backlog=3, sent=9, tokens=4, cpu_seconds=0.1, loop_lags=b"", records={}
        ),
    )
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(render(figures))
    shown = console.export_text()
    assert figures.token_rate == pytest.approx(4 / 1.5)
    for part in ("in flight 7", "waiting 3", "rate limited 1", "time to first token", "ok 1", "req/s █"):
        assert part in shown
    assert "waiting 3" in figures.line()
    assert "failed 1" in figures.line()


def test_the_clock_says_how_long_it_will_take() -> None:
    figures = Figures(planned=60)
    for at, shown in ((7, "7 of 60 s"), (61, "61 s, awaiting the last")):
        figures.take(
            Records(),
            Progress(
                at=at, in_flight=0, backlog=0, sent=0, tokens=0, cpu_seconds=0, loop_lags=b"", records={}
            ),
        )
        assert figures.clock == shown


def test_sparkline() -> None:
    assert sparkline([0, 5, 10]) == "▁▅█"
    assert sparkline([]) == sparkline([0, 0]) == ""


def test_plots() -> None:
    assert line_plot([], x_label="", y_label="", title="") == ""
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(1, 1) == [1]
    assert len(ticks(0.001, 0.0123)) <= 7
