"""From a process to its unit."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gpu_exporter.cgroup import NO_UNIT, UNKNOWN, unit_of_cgroup, unit_of_pid

ENGINE = "llm-engine@llama-8b-gpu0.service"


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (f"0::/llm.slice/llm-engines.slice/{ENGINE}\n", ENGINE),
        (f"0::/llm.slice/{ENGINE}/payload/worker\n", ENGINE),
        (f"12:devices:/llm.slice\n1:name=systemd:/llm.slice/{ENGINE}\n0::/init.scope\n", ENGINE),
        (f"9:memory:/other.service\n1:name=systemd:/\n0::/llm.slice/{ENGINE}\n", ENGINE),
        (f"0::/../../llm.slice/{ENGINE}\n", ENGINE),
        ("0::/system.slice/_cgroup.service\n", "cgroup.service"),
        ("0::/user.slice/user-1000.slice/session-17.scope\n", "session.scope"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope\n", "user@1000.service"),
        (f"0::/system.slice/docker-{'0a1b' * 16}.scope\n", "docker.scope"),
        ("0::/system.slice/run-r0123456789abcdef0123456789abcdef.service\n", "run.service"),
        ("0::/system.slice/run-u42.service\n", "run.service"),
        ("0::/system.slice/run-p123-i456.service\n", "run.service"),
        (f"0::/kubepods.slice/cri-containerd-{'0a1b' * 16}.scope\n", "cri-containerd.scope"),
        ("0::/system.slice/vllm-8000.service\n", "vllm-8000.service"),
        ("0::/system.slice/vllm-p100.service\n", "vllm-p100.service"),
        ("0::/\n", NO_UNIT),
        ("4:memory:/process_api/966d\n0::/\n", NO_UNIT),
        ("", NO_UNIT),
    ],
)
def test_unit_of_cgroup(text: str, unit: str) -> None:
    assert unit_of_cgroup(text) == unit


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    assert unit_of_pid(4194305, tmp_path) == UNKNOWN
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(f"0::/llm.slice/{ENGINE}\n")
    assert unit_of_pid(7, tmp_path) == ENGINE


@given(st.text())
def test_any_text_has_a_unit(text: str) -> None:
    assert unit_of_cgroup(text)


@given(
    st.integers(0, 1 << 62), st.sampled_from(["session-{}.scope", "run-u{}.service", "run-r{:032x}.scope"])
)
def test_random_names_do_not_become_labels(number: int, pattern: str) -> None:
    name = pattern.format(number)
    assert unit_of_cgroup(f"0::/a.slice/{name}") in {"session.scope", "run.service", "run.scope"}
