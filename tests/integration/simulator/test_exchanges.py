"""The simulator answers as a real vLLM did: the same requests, answers of the same shape."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.simulator.conftest import Simulator
from tests.integration.simulator.exchanges import CASES, FLAGS, MODEL, Case, ask, reduce

# Recorded from vLLM 0.32.0 started with FLAGS on a tiny random Llama; see test_real_vllm.py.
RECORDED = json.loads(Path(__file__).with_name("vllm-0.32.exchanges.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def like_the_recorded() -> Any:
    flags = [*FLAGS, "--host", "127.0.0.1", "--port", "0", "--sim-startup-seconds", "0"]
    made = Simulator(*flags, "--sim-inter-token-ms", "1", model=MODEL)
    try:
        yield made.until_serving()
    finally:
        made.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_answer_has_the_recorded_shape(like_the_recorded: Simulator, case: Case) -> None:
    assert reduce(*ask(like_the_recorded.port, case)) == RECORDED[case.name]


def test_every_recorded_exchange_is_compared() -> None:
    assert {case.name for case in CASES} == set(RECORDED)
