"""vLLM's log lines, and what is said about a start that failed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.engine.diagnosis import diagnose
from daemons.engine.vllm_log import PHASES, LogLine, PhaseTracker, parse_line, tells_death


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (
            "(EngineCore pid=7) INFO 11-23 09:46:45 [core.py:403] init took 1 s",
            LogLine("info", "EngineCore", "init took 1 s"),
        ),
        (
            "(EngineCore_DP0 pid=7) ERROR 11-23 09:46:45 [core.py:403] boom",
            LogLine("error", "EngineCore_DP0", "boom"),
        ),
        (
            "WARNING 01-02 10:11:12 arg_utils.py:1] x",
            LogLine("info", "", "WARNING 01-02 10:11:12 arg_utils.py:1] x"),
        ),
        ("INFO:     Started server process [1]", LogLine("info", "", "Started server process [1]")),
        ("(APIServer pid=1) plain", LogLine("info", "APIServer", "plain")),
        (
            "INFO 11-23 09:46:45 [launcher.py:1] Route: /docs, Methods: GET",
            LogLine("debug", "", "Route: /docs, Methods: GET"),
        ),
    ],
)
def test_lines(raw: str, line: LogLine) -> None:
    assert parse_line(raw) == line


@given(
    st.lists(st.text(max_size=80) | st.sampled_from(["Loading weights took 1 s", "Starting to load model m"]))
)
def test_any_output_is_read_and_phases_only_advance(lines: list[str]) -> None:
    tracker, last = PhaseTracker(), 0
    for raw in lines:
        tracker.feed(parse_line(raw).text)
        index = PHASES.index(tracker.phase)
        assert index >= last
        last = index


def test_percent_belongs_to_its_phase() -> None:
    tracker = PhaseTracker()
    assert tracker.feed("Loading safetensors checkpoint shards:  25% Completed | 1/4")
    assert str(tracker) == "loading weights 25 %"
    assert not tracker.feed("Loading safetensors checkpoint shards:  25% Completed | 1/4")
    assert tracker.feed("Loading weights took 3 seconds")
    assert str(tracker) == "weights loaded"


def test_the_core_says_that_it_died() -> None:
    assert tells_death("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.")
    assert not tells_death("INFO all is well")


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("vllm: error: unrecognized arguments: --swap-space 4", 78, "does not know --swap-space 4"),
        ("vllm serve: error: argument --dtype: invalid choice: 'x'", 78, "refuses --dtype: invalid choice"),
        (
            "ValueError: Free memory on device cuda:0 (3.1/47.5 GiB) on startup is less than desired GPU",
            1,
            "only 3.1 of 47.5 GiB",
        ),
        (
            "ValueError: To serve at least one request with the models's max seq len (8192), 1 GiB",
            78,
            "does not hold one request of 8192 tokens",
        ),
        ("ValueError: No available memory for the cache blocks.", 78, "no memory is left for the KV cache"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", 78, "llmctl plan"),
        (
            "OSError: [Errno 98] error while attempting to bind on address: address already in use",
            1,
            "in use",
        ),
        (
            "RepositoryNotFoundError: 401. If you are trying to access a private or gated repo, make",
            78,
            "there is no such model",
        ),
        ("OSError: You are trying to access a gated repo.", 78, "the model is gated"),
        ("pydantic: Model architectures ['FooForCausalLM'] are not supported for now", 78, "FooForCausalLM"),
    ],
)
def test_known_failures_say_what_to_do(line: str, status: int, said: str) -> None:
    fatal = diagnose(
        ["noise", line, "RuntimeError: Engine core initialization failed. See root cause above."], 1
    )
    assert said in str(fatal)
    assert fatal.exit_code == status


def test_unknown_failures_name_the_first_exception() -> None:
    lines = ["KeyError: 'x'", "RuntimeError: Engine core initialization failed. See root cause above.", "bye"]
    assert str(diagnose(lines, -9)) == "vLLM did not start (killed by signal 9): KeyError: 'x'"
    assert str(diagnose([], 1)).endswith("it wrote nothing")
