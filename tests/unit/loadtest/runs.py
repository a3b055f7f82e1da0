"""Made-up runs whose figures are known."""

from array import array
from collections.abc import Sequence
from math import nan

from daemons.loadtest.client.records import Outcome, Record, Records
from daemons.loadtest.load.plan import Constant, Plan
from daemons.loadtest.measure.analysis import analyse
from daemons.loadtest.measure.results import Result
from daemons.loadtest.measure.samples import Gauge, Measured

SILENT = {Outcome.CONNECT_FAILED, Outcome.RESET, Outcome.TIMEOUT, Outcome.ABANDONED}


def record(at: float, seconds: float, outcome: Outcome = Outcome.OK, wait: float = 0.0) -> Record:
    ok = outcome is Outcome.OK
    sent, end = at + wait, at + wait + seconds
    return Record(
        intended=at, due=sent, sent=sent, first=sent + seconds / 2 if ok else nan, last=end if ok else nan,
        end=end, prompt_tokens=10 if ok else -1, output_tokens=11 if ok else -1, cached_tokens=0,
        gaps=10 if ok else 0,
        type=0, key=0, status=0 if outcome in SILENT else 200, outcome=outcome, slow=0, redialled=0,
    )  # fmt: skip


def result_of(
    rows: Sequence[Record], *objectives: str, cpu: float = 0.1, warmup: float | None = 0, seconds: float = 100
) -> Result:
    load = Constant(rate=max(1, len(rows)) / seconds)
    plan = Plan.model_validate(
        {"load": load, "duration": seconds, "objectives": objectives, "warmup": warmup}
    )
    return analyse(run_of(rows, plan, cpu, seconds))


def run_of(rows: Sequence[Record], plan: Plan, cpu: float = 0.1, seconds: float = 100) -> Measured:
    records = Records()
    for row in rows:
        records.add(row, array("f", [(row.last - row.first) / 10] * row.gaps))
    return Measured(
        plan=plan, started="2026-01-01", target="http://localhost", model="m", types=["a"],
        records=records,
        loop_lags=array("f", [0.001]),
        gauges=[Gauge(seconds * n / 10, 1, 0, cpu * seconds * n / 10) for n in range(11)],
        stopped_by="complete", sending_ended=seconds, ended=seconds + 1,
    )  # fmt: skip


def steady(seconds: float, count: int = 1000) -> list[Record]:
    return [record(n * 100 / count, seconds * (1 + (n * 7919 % 100) / 1000)) for n in range(count)]
