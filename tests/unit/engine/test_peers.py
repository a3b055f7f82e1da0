"""What stands between GPUs, read from a made-up sysfs, and trials with a stand-in for vLLM's Python."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from daemons.engine.board import Board
from daemons.engine.meters import Meters
from daemons.engine.peers.bus import UNKNOWN, Bus, acs_control, read_bus
from daemons.engine.peers.trial import Outcome, try_all_reduce

GPU = "0000:3b:00.0"
BRIDGE = "0000:3a:00.0"


def registers(acs: int | None) -> bytes:
    """A configuration space with an AER capability, and ACS after it."""
    space = bytearray(4096)
    struct.pack_into("<I", space, 0x100, 0x0001 | 1 << 16 | 0x148 << 20)
    if acs is not None:
        struct.pack_into("<I", space, 0x148, 0x000D | 1 << 16)
        struct.pack_into("<H", space, 0x148 + 6, acs)
    return bytes(space)


def sysfs(folder: Path, acs: bytes, iommu: str | None) -> Path:
    """The GPU below one bridge, as /sys/devices has them, and links to both."""
    bridge = folder / "devices" / "pci0000:3a" / BRIDGE
    gpu = bridge / GPU
    gpu.mkdir(parents=True)
    (bridge / "config").write_bytes(acs)
    if iommu is not None:
        (gpu / "iommu_group").mkdir()
        (gpu / "iommu_group" / "type").write_text(f"{iommu}\n")
    links = folder / "bus"
    links.mkdir()
    for device in (bridge, gpu):
        (links / device.name).symlink_to(device)
    return links


@pytest.mark.parametrize(
    ("acs", "iommu", "expected"),
    [
        (registers(0b1101), "DMA-FQ", Bus("translating", f"redirects at {BRIDGE}")),
        (registers(0b0001), "identity", Bus("pass-through", "off")),
        (registers(None), None, Bus("off", "off")),
        (registers(0b1101)[:64], "DMA", Bus("translating", UNKNOWN)),
    ],
)
def test_the_bus(tmp_path: Path, acs: bytes, iommu: str | None, expected: Bus) -> None:
    assert read_bus([GPU], sysfs(tmp_path, acs, iommu)) == expected


def test_a_bus_that_is_not_there(tmp_path: Path) -> None:
    assert read_bus([GPU], tmp_path) == Bus("off", "off")


@given(st.binary(max_size=600))
def test_any_registers_are_read(space: bytes) -> None:
    control = acs_control(space)
    assert control is None or 0 <= control <= 0xFFFF


def vllm(folder: Path, *script: str) -> str:
    """A vLLM whose Python is a shell script: ``$3`` is the rank."""
    (folder / "python").write_text("\n".join(("#!/bin/sh", *script)))
    (folder / "python").chmod(0o755)
    return str(folder / "vllm")


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (["echo 0.5 s"], Outcome(True, "0.5 s")),
        (["echo noise", "kill -ALRM $$"], Outcome(False, "an all-reduce did not end in 30 s")),
        (
            ['[ "$3" = 0 ] && echo fine && exit 0', "kill -ALRM $$"],
            Outcome(False, "an all-reduce did not end in 30 s"),
        ),
        (
            ["echo the sum of an all-reduce is wrong", "exit 3"],
            Outcome(False, "the sum of an all-reduce is wrong"),
        ),
        (["echo RuntimeError: NCCL error", "exit 1"], Outcome(False, "RuntimeError: NCCL error")),
        (["echo torch.OutOfMemoryError: no", "exit 1"], Outcome(None, "torch.OutOfMemoryError: no")),
    ],
)
def test_outcomes(tmp_path: Path, script: list[str], outcome: Outcome) -> None:
    assert try_all_reduce(vllm(tmp_path, *script), 2, {"PATH": "/usr/bin:/bin"}) == outcome


def test_the_environment_is_exactly_the_one_given(tmp_path: Path) -> None:
    program = vllm(tmp_path, 'echo "$NCCL_P2P_DISABLE $5"')
    said = try_all_reduce(program, 2, {"NCCL_P2P_DISABLE": "1"})
    assert said.worked
    assert said.said.startswith("1 /")


def test_without_vllms_python_nothing_is_tried(tmp_path: Path) -> None:
    assert try_all_reduce(str(tmp_path / "vllm"), 2, {}).worked is None


def test_what_was_found_is_a_series() -> None:
    meters = Meters(Board())
    meters.show_peers({"links": "GPU 0 - GPU 1: PHB", "direct": "false"})
    said = generate_latest(meters.registry).decode()
    assert 'llm_engine_gpu_peers_info{direct="false",links="GPU 0 - GPU 1: PHB"} 1.0' in said
