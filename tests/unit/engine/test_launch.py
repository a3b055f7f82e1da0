"""What is decided before vLLM is started on GPUs."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemons.engine.config import EngineSettings
from daemons.engine.fit import compare
from daemons.engine.gpus import Gpu, Link
from daemons.engine.launch import prepare
from daemons.engine.peers.trial import Outcome
from daemons.engine.vllm_log import Figures
from daemons.runtime.errors import Fatal

GIB = 1 << 30


class FakeInventory:
    """Two small GPUs; `direct` is what the driver claims of peer access."""

    def __init__(self, memory: int = 4 * GIB, direct: bool = True) -> None:
        self._memory, self._direct = memory, direct

    def gpus(self) -> list[Gpu]:
        return [
            Gpu(index, f"GPU-{index}", f"0000:0{index}:00.0", "Fake", self._memory, frozenset({index}))
            for index in (0, 1)
        ]

    def processes(self, uuid: str) -> set[int]:
        assert uuid
        return set()

    def links(self, uuids: Sequence[str]) -> list[Link]:
        assert len(uuids) == 2
        return [Link(0, 1, "PHB", self._direct, self._direct)]


class FakeTrial:
    """An all-reduce that works by peer access, through host memory, or not at all."""

    def __init__(self, by_peers: Outcome, through_host: Outcome | None = None) -> None:
        self._outcomes = {False: by_peers, True: through_host or WORKS}
        self.environments: list[Mapping[str, str]] = []

    def __call__(self, vllm: str, ranks: int, environment: Mapping[str, str]) -> Outcome:
        assert (vllm, ranks) == ("/opt/llm/vllm/current/bin/vllm", 2)
        assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"
        self.environments.append(environment)
        return self._outcomes[environment.get("NCCL_P2P_DISABLE") == "1"]


WORKS = Outcome(True, "0.4 s")
HANGS = Outcome(False, "an all-reduce did not end in 30 s")


def settings(tmp_path: Path, **changes: object) -> EngineSettings:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 128,
    }
    (model / "config.json").write_text(json.dumps(config))
    header = json.dumps({"a": {"dtype": "BF16", "shape": [64, 512], "data_offsets": [0, 65536]}}).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(65536))
    base = {
        "model": str(model),
        "served_names": ["m"],
        "gpus": ["GPU-1"],
        "metrics": {"port": 0},
        "vllm_version": "0.32.0",
        "runtime_dir": tmp_path / "run",
        "cache_dir": tmp_path / "cache",
        "state_dir": tmp_path / "state",
    }
    return EngineSettings.model_validate(base | changes)


def test_gpus_by_uuid_near_processors_and_a_cache_of_its_own(tmp_path: Path) -> None:
    launch = prepare(settings(tmp_path), FakeInventory(), {})
    assert launch.gpus == ("GPU-1",)
    assert launch.cpus == {1}
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "TORCHDYNAMO_DISABLE" not in launch.environment
    cache = Path(launch.environment["VLLM_CACHE_ROOT"]).parent
    assert cache.name.endswith("-vllm-0.32.0")
    assert cache.stat().st_mode & 0o777 == 0o700


def two(tmp_path: Path) -> EngineSettings:
    return settings(tmp_path, gpus=[0, 1], tensor_parallel_size=2)


def test_peer_access_that_is_shown_is_used(tmp_path: Path) -> None:
    trial = FakeTrial(WORKS)
    launch = prepare(two(tmp_path), FakeInventory(), {}, trial)
    assert "--disable-custom-all-reduce" not in launch.command
    assert "NCCL_P2P_DISABLE" not in launch.environment
    assert launch.environment["TORCH_NCCL_BLOCKING_WAIT"] == "1"
    assert launch.peers.facts["links"] == "GPU 0 - GPU 1: PHB, peer access claimed"
    assert launch.peers.facts["all_reduce"] == "0.4 s"


@pytest.mark.parametrize(
    ("claimed", "said"),
    [(True, "claims peer access, but an all-reduce did not end in 30 s"), (False, "have no peer access")],
)
def test_peer_access_that_is_not_there_is_avoided(tmp_path: Path, claimed: bool, said: str) -> None:
    trial = FakeTrial(HANGS)
    launch = prepare(two(tmp_path), FakeInventory(direct=claimed), {}, trial)
    assert "--disable-custom-all-reduce" in launch.command
    assert launch.environment["NCCL_P2P_DISABLE"] == "1"
    assert said in launch.peers.reason
    assert len(trial.environments) == 1 + claimed


def test_gpus_that_cannot_add_up_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"cannot work together .*did not end in 30 s, even through host memory"):
        prepare(two(tmp_path), FakeInventory(), {}, FakeTrial(HANGS, HANGS))


def test_a_trial_that_cannot_be_made_leaves_it_to_the_driver(tmp_path: Path) -> None:
    launch = prepare(two(tmp_path), FakeInventory(), {}, FakeTrial(Outcome(None, "no python")))
    assert "--disable-custom-all-reduce" not in launch.command
    assert "could not be tried (no python)" in launch.peers.reason


def test_an_operators_environment_has_the_last_word(tmp_path: Path) -> None:
    mine = two(tmp_path).model_copy(update={"environment": {"NCCL_P2P_DISABLE": "0"}})
    launch = prepare(mine, FakeInventory(direct=False), {}, FakeTrial(HANGS))
    assert launch.environment["NCCL_P2P_DISABLE"] == "0"


def test_the_plan_is_compared_with_vllm_and_corrected(tmp_path: Path) -> None:
    mine = settings(tmp_path)
    first = prepare(mine, FakeInventory(), {}).planned
    assert first is not None
    assert not first.corrected
    figures = Figures()
    for line in (
        "Model loading took 0.50 GiB memory and 1.234567 seconds",
        "Available KV cache memory: 2.25 GiB",
        "GPU KV cache size: 4,194,304 tokens, Maximum concurrency for 128 tokens per request: 32768.00x",
    ):
        figures.feed(line)
    compare(first, figures, mine.state_dir)
    second = prepare(mine, FakeInventory(), {}).planned
    assert second is not None
    assert second.corrected
    assert second.weights == GIB // 2
    assert second.kv_cache == int(2.25 * GIB)
    assert second.tokens == int(2.25 * GIB) // 512  # two layers, four heads of 16, key and value, two bytes
    other = prepare(mine.model_copy(update={"max_num_seqs": 8}), FakeInventory(), {}).planned
    assert other is not None
    assert not other.corrected


def test_what_cannot_be_planned_is_left_to_vllm(tmp_path: Path) -> None:
    mine = settings(tmp_path)
    (tmp_path / "model" / "config.json").write_text("{}")
    assert prepare(mine, FakeInventory(), {}).planned is None


def test_two_engines_on_one_gpu_beyond_its_memory_are_refused(tmp_path: Path) -> None:
    other = settings(tmp_path, gpus=["0000:01:00.0"], gpu_memory_utilization=0.5)
    with pytest.raises(Fatal, match=r"is claimed to 1\.40 of its memory: this engine 0\.90, other 0\.50"):
        prepare(settings(tmp_path), FakeInventory(), {"other": other})
    prepare(settings(tmp_path, gpus=[0]), FakeInventory(), {"other": other})


def test_weights_beyond_the_memory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"its weights are 0\.0 GiB for each of 1 GPU") as refused:
        prepare(settings(tmp_path), FakeInventory(memory=1000), {})
    assert refused.value.exit_code == 78


def test_a_plan_that_does_not_fit_is_a_warning_and_vllm_decides(tmp_path: Path) -> None:
    with capture_logs() as said:
        launch = prepare(settings(tmp_path), FakeInventory(memory=700 << 20), {})
    assert launch.planned is not None
    assert launch.planned.kv_cache < 0
    (warning,) = [record for record in said if record["log_level"] == "warning"]
    assert warning["event"] == "the plan says that this will not fit; vLLM decides"


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="gpus: 7 is no GPU of this machine"):
        prepare(settings(tmp_path, gpus=[7]), FakeInventory(), {})
