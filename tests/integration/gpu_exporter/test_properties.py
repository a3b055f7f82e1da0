"""Whatever fails in NVML, a page comes out, and everything on it was read."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from daemons.gpu_exporter import collectors
from daemons.gpu_exporter.collection import Collection
from daemons.gpu_exporter.nvml import NvmlGone, open_nvml
from daemons.gpu_exporter.page import Page
from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.gpu_exporter.snapshot import NvmlState, Snapshot

FUNCTIONS = sorted(
    set(
        re.findall(
            r"\bnvml[A-Z]\w+(?=\()", (Path(__file__).parents[2] / "support/fakenvml/fakenvml.c").read_text()
        )
    )
    | set(
        re.findall(r"\((nvml\w+),", (Path(__file__).parents[2] / "support/fakenvml/fakenvml.c").read_text())
    )
)
FIELDS = ("field.74", "field.82", "field.91", "field.138", "field.161", "field.230")
CODES = st.sampled_from([*range(1, 31), 999])
FAILURES = st.lists(
    st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([*FUNCTIONS, *FIELDS]), CODES), max_size=12
)

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(body: bytes) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if not sample.name.startswith("gpu_exporter")
    }


def taken(unit_of: Callable[[int], str]) -> Snapshot:
    try:
        nvml = open_nvml()
    except NvmlGone as error:
        return Snapshot(state=error.state)
    try:
        return Collection(nvml, collectors.standard(unit_of, 32), 10.0, clock=lambda: 0.0).take()
    except NvmlGone as error:
        return Snapshot(state=error.state)
    finally:
        nvml.close()


@pytest.mark.parametrize("name", ["a6000-pair", "h100"])
def test_any_error_on_any_call(inside: Any, unit_of: Callable[[int], str], name: str) -> None:
    inside.use(name)
    healthy = list(inside.lines)
    whole = series(taken(unit_of).body.plain)
    assert len(whole) > 50

    @settings(max_examples=150)
    @given(FAILURES)
    def check(failures: list[tuple[int, str, int]]) -> None:
        inside.lines = list(healthy)
        inside.add(*(f"{index} error.{function} {code}" for index, function, code in failures))
        snapshot = taken(unit_of)
        page = Page(GpuExporterSettings(expected_gpus=2), CollectorRegistry(), clock=lambda: 0.0)
        page.snapshot(snapshot)
        text, _ = page.render({})
        answered = {gpu.uuid for gpu in snapshot.gpus if not gpu.fault}
        for key, value in series(text).items():
            name, labels = key
            labelled = dict(labels)
            if name in {"gpu_up", "gpu_present", "gpu_expected", "gpu_fault"} or name.startswith("gpu_xid"):
                continue
            if name in {"gpu_info", "gpu_driver_info", "gpu_unit_utilization_ratio"}:
                assert value == 1 or name == "gpu_unit_utilization_ratio"
            else:
                assert whole.get(key) == value, "a value that NVML never gave"
            assert snapshot.state is NvmlState.OK
            assert labelled.get("uuid", "") in answered | {""}
        assert f"gpu_exporter_collection_success {int(snapshot.state is NvmlState.OK)}\n".encode() in text

    check()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_call_failing_alone(inside: Any, unit_of: Callable[[int], str], function: str) -> None:
    inside.use("a6000-pair")
    whole = series(taken(unit_of).body.plain)
    for code in (1, 2, 3, 4, 9, 10, 13, 15, 16, 18, 999):
        inside.use("a6000-pair")
        inside.add(f"1 error.{function} {code}")
        snapshot = taken(unit_of)
        body = series(snapshot.body.plain)
        own = {"gpu_info", "gpu_unit_utilization_ratio"}
        assert all(whole.get(key) == value for key, value in body.items() if key[0] not in own)
        if snapshot.state is NvmlState.OK:
            first = [key for key in whole if ("gpu", "0") in key[1]]
            assert all(key in body for key in first), "a fault of one GPU hides another"
