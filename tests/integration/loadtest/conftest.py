"""The load tester as a process, against the mock engine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemons.loadtest.measure.compare import load_result
from daemons.loadtest.measure.results import Result


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("the mock engine needs a C compiler: install gcc and libc6-dev")


class Outcome:
    """A finished load test."""

    def __init__(self, done: "subprocess.CompletedProcess[str]", saved: Path) -> None:
        self.status = done.returncode
        self.text = done.stdout + done.stderr
        self._result = load_result(saved) if saved.exists() else None

    @property
    def result(self) -> Result:
        """The result it saved."""
        assert self._result is not None, self.text
        return self._result


Run = Callable[..., Outcome]


def command(*options: str) -> list[str]:
    """The command line of a load test."""
    return [sys.executable, "-m", "daemons.loadtest", *options]


def environment(key: str = "sk-test-key") -> dict[str, str]:
    """The environment of a load test."""
    return {**os.environ, "LLM_API_KEY": key}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a load test to its end."""

    def run(url: str, *options: str) -> Outcome:
        saved = tmp_path / "result.json"
        saved.unlink(missing_ok=True)
        # A lag above the usual bound says something about this machine, nothing about the code.
        lag = () if "--max-lag" in options else ("--max-lag", "10s")
        done = subprocess.run(
            command("--url", url, "--json", str(saved), *lag, *options),
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(),
            check=False,
        )
        return Outcome(done, saved)

    return run
