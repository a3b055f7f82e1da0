"""The test hosts and the playbooks that are run on them, shared by all scenarios."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def mirror() -> Path:
    """A folder of downloads, made by what ``make mirror`` runs and kept between runs."""
    folder = image.cache_folder() / "mirror"
    tool = [sys.executable, str(REPO / "ansible/tools/gather_mirror.py"), str(folder)]
    subprocess.run([*tool, "--only", "wheels", "--vllm", "cpu"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The tiny model; built where it is not there yet."""
    folder = image.cache_folder().parent / "models" / "tiny"
    if not (folder / "config.json").is_file():
        pytest.skip(f"no tiny model in {folder}: make up builds it")
    return folder


@pytest.fixture(scope="session")
def lab(mirror: Path) -> Iterator[hosts.Lab]:
    """The network of test hosts."""
    if (reason := hosts.missing()) is not None:
        pytest.skip(reason)
    work = Path(tempfile.mkdtemp(prefix="llm-e2e-", dir="/var/tmp"))
    try:
        with hosts.opened(work, mirror) as opened:
            yield opened
    finally:
        shutil.rmtree(work, ignore_errors=True)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this checkout's wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(REPO)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def playbooks(lab: hosts.Lab, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Playbooks:
    """Runs playbooks on the test hosts and keeps everything they print."""
    wheel = next(wheels.glob("*.whl"))
    return Playbooks(tmp_path_factory.mktemp("ansible"), lab.work / "id", wheel, dict(os.environ))
