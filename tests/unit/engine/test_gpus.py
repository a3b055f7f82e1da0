"""GPUs by any of their names."""

from pathlib import Path

import pytest

from daemons.engine.gpus import Gpu, near_cpus, parse_cpu_list, resolve, shared_too_far, short_pci
from daemons.runtime.errors import Fatal

A = Gpu(0, "GPU-aaaa", "0000:3b:00.0", "RTX A6000", 48 << 30)
B = Gpu(1, "GPU-bbbb", "0000:af:00.0", "RTX A6000", 48 << 30)


@pytest.mark.parametrize(
    "name", [1, "1", "GPU-bbbb", "gpu-BBBB", "0000:AF:00.0", "00000000:AF:00.0", "af:00.0"]
)
def test_a_gpu_has_many_names(name: int | str) -> None:
    assert resolve([name], [A, B]) == (B,)


def test_order_is_kept_and_faults_are_all_named() -> None:
    assert resolve(["1", "0"], [A, B]) == (B, A)
    with pytest.raises(Fatal) as refused:
        resolve([0, "GPU-aaaa", 7], [A, B])
    first, second = str(refused.value).splitlines()
    assert "GPU-aaaa is the same GPU" in first
    assert "7 is no GPU of this machine; there are: 0 = 0000:3b:00.0 = GPU-aaaa (RTX A6000), 1 =" in second
    assert refused.value.exit_code == 78


def test_two_engines_may_share_a_gpu_up_to_its_memory() -> None:
    assert shared_too_far([A], 0.5, [("other", [A, B], 0.5)]) == ""
    assert shared_too_far([B], 0.9, [("other", [A], 0.9)]) == ""
    assert "claimed to 1.40" in shared_too_far([A], 0.5, [("other", [A], 0.9)])


def test_processors_near_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "numa_node").write_text("1\n")
    (tmp_path / "local_cpulist").write_text("16-18,40\n")
    assert near_cpus(tmp_path) == {16, 17, 18, 40}
    (tmp_path / "numa_node").write_text("-1\n")
    assert near_cpus(tmp_path) == frozenset()
    assert near_cpus(tmp_path / "absent") == frozenset()
    assert parse_cpu_list("") == frozenset()
    assert short_pci("00000000:3B:00.0") == "0000:3b:00.0"
