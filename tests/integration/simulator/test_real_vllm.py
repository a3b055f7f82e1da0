"""The recorded exchanges are still those of the installed vLLM; where it changes, the simulator follows."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.simulator.conftest import PATIENCE, PROJECT, Simulator
from tests.integration.simulator.exchanges import CASES, FLAGS, Case, ask, reduce
from tests.integration.simulator.test_exchanges import RECORDED

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

VLLM = PROJECT / ".venv-vllm" / "bin"
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


class RealVllm(Simulator):
    """The real server, as far as the tests see it."""

    patience = 300.0

    def __init__(self, folder: Path) -> None:
        # vLLM takes port 0, but does not say which one it got.
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        flags = [*FLAGS, "--host", "127.0.0.1", "--port", port, "--kv-cache-memory-bytes", "67108864"]
        self._begin([str(VLLM / "vllm"), "serve", str(folder), *flags], {**os.environ, **SETTINGS})


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    if not (VLLM / "vllm").exists():
        pytest.skip("no vLLM: .venv-vllm is not installed")
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build = [str(VLLM / "python"), str(PROJECT / "tests" / "support" / "build_tiny_model.py"), str(folder)]
    subprocess.run(build, check=True, timeout=5 * PATIENCE, capture_output=True, cwd=PROJECT)
    made = RealVllm(folder)
    try:
        yield made.until_serving()
    finally:
        made.end()
        made.close()


def within(events: list[Any], recorded: list[Any]) -> bool:
    """Whether `events` are `recorded` but for some in the middle: many tokens may share a chunk."""
    middle = iter(recorded[1:-1])
    return (
        events[0] == recorded[0]
        and events[-1] == recorded[-1]
        and all(any(event == candidate for candidate in middle) for event in events[1:-1])
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_installed_vllm_answers_as_recorded(real: Simulator, case: Case) -> None:
    answer, recorded = reduce(*ask(real.port, case)), dict(RECORDED[case.name])
    assert within(answer.pop("events", [0, 0]), recorded.pop("events", [0, 0]))
    assert json.dumps(answer) == json.dumps(recorded)
