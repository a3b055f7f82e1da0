"""The catalogue, its page, and the counters."""

from pathlib import Path

from daemons.gpu_exporter.snapshot import GpuStatus, XidEvent
from daemons.gpu_exporter.xid import ADVICE, CATALOGUE, PAGING, Action, markdown
from daemons.gpu_exporter.xid_counts import ERRORS, LAST, Source, XidCounts

PCI = "00000000:3b:00.0"
GPUS = {PCI: GpuStatus(index=0, uuid="GPU-a", pci=PCI)}


def read_log() -> XidCounts:
    xids = XidCounts()
    xids.active(Source.KERNEL, True)
    return xids


def event(xid: int, at: float = 1.0) -> XidEvent:
    return XidEvent(at=at, pci=PCI, xid=xid)


def counts(xids: XidCounts) -> dict[str, float]:
    return {dict(s.labels)["xid"]: s.value for s in xids.samples(GPUS) if s.family is ERRORS}


def test_the_page_is_generated() -> None:
    page = Path(__file__).parents[3] / "docs" / "xid.md"
    assert page.read_text() == markdown(), "python -m daemons.gpu_exporter.xid > docs/xid.md"


def test_the_codes_worth_a_call() -> None:
    assert {48, 62, 64, 74, 79, 95, 119, 120} <= set(PAGING)
    for code in (13, 31, 43):
        assert CATALOGUE[code].action is Action.APPLICATION
        assert not CATALOGUE[code].page
    assert set(ADVICE) == set(Action)


def test_two_sources_of_one_event_count_once() -> None:
    xids = read_log()
    xids.active(Source.NVML, True)
    xids.add(Source.KERNEL, [event(79, 5.0)])
    xids.add(Source.NVML, [event(79, 5.1)])
    assert counts(xids)["79"] == 1
    xids.add(Source.NVML, [event(79, 9.0), event(79, 9.5)])
    assert counts(xids)["79"] == 3
    assert counts(xids)["48"] == 0
    assert [s.value for s in xids.samples(GPUS) if s.family is LAST] == [9.5]


def test_without_a_source_there_are_no_zeros() -> None:
    xids = XidCounts()
    xids.active(Source.KERNEL, False)
    assert counts(xids) == {}


def test_nothing_is_shown_before_the_log_is_read() -> None:
    xids = XidCounts()
    xids.active(Source.NVML, True)
    xids.add(Source.NVML, [event(79)])
    assert counts(xids) == {}
    xids.active(Source.KERNEL, False)
    assert counts(xids)["79"] == 1


def test_a_source_that_takes_over_counts_on() -> None:
    xids = read_log()
    xids.active(Source.NVML, True)
    xids.add(Source.KERNEL, [event(79), event(79)])
    xids.active(Source.KERNEL, False)
    xids.add(Source.NVML, [event(79)])
    assert counts(xids)["79"] == 3
    xids.active(Source.KERNEL, True)
    xids.active(Source.NVML, False)
    xids.add(Source.KERNEL, [event(79)])
    assert counts(xids)["79"] == 4


def test_a_flood_of_one_code_is_one_series() -> None:
    xids = read_log()
    xids.add(Source.KERNEL, [event(31)] * 10_000)
    assert counts(xids)["31"] == 10_000


def test_codes_are_bounded() -> None:
    xids = XidCounts()
    xids.active(Source.KERNEL, False)
    xids.add(Source.KERNEL, [event(code) for code in range(5000)])
    assert len(counts(xids)) == 100


def test_an_unknown_gpu_keeps_its_address() -> None:
    xids = read_log()
    xids.add(Source.KERNEL, [event(79)])
    (sample,) = [s for s in xids.samples({}) if s.family is ERRORS]
    assert dict(sample.labels) == {"gpu": "", "uuid": "", "pci_bus_id": PCI, "xid": "79"}
