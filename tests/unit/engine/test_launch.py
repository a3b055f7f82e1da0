"""What is decided before vLLM is started on GPUs."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from daemons.engine.config import EngineSettings
from daemons.engine.gpus import Gpu
from daemons.engine.launch import prepare
from daemons.runtime.errors import Fatal

GIB = 1 << 30


class FakeInventory:
    """Two small GPUs; `direct` says whether they reach each other."""

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

    def direct_access(self, uuids: Sequence[str]) -> bool:
        assert len(uuids) == 2
        return self._direct


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


def test_tensor_parallelism_without_direct_access_avoids_it(tmp_path: Path) -> None:
    two = settings(tmp_path, gpus=[0, 1], tensor_parallel_size=2)
    launch = prepare(two, FakeInventory(direct=False), {})
    assert "--disable-custom-all-reduce" in launch.command
    assert launch.environment["NCCL_P2P_DISABLE"] == "1"
    assert launch.environment["TORCH_NCCL_BLOCKING_WAIT"] == "1"
    launch = prepare(two, FakeInventory(direct=True), {})
    assert "--disable-custom-all-reduce" not in launch.command
    assert "NCCL_P2P_DISABLE" not in launch.environment


def test_two_engines_on_one_gpu_beyond_its_memory_are_refused(tmp_path: Path) -> None:
    other = settings(tmp_path, gpus=["0000:01:00.0"], gpu_memory_utilization=0.5)
    with pytest.raises(Fatal, match=r"is claimed to 1\.40 of its memory: this engine 0\.90, other 0\.50"):
        prepare(settings(tmp_path), FakeInventory(), {"other": other})
    prepare(settings(tmp_path, gpus=[0]), FakeInventory(), {"other": other})


def test_weights_beyond_the_memory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"its weights are 0\.0 GiB for each of 1 GPU") as refused:
        prepare(settings(tmp_path), FakeInventory(memory=1000), {})
    assert refused.value.exit_code == 78


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="gpus: 7 is no GPU of this machine"):
        prepare(settings(tmp_path, gpus=[7]), FakeInventory(), {})
