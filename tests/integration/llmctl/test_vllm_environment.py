"""The real environment of vLLM and the real model, as they were built on this machine."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from daemons.llmctl.up.host import Host
from daemons.llmctl.up.installer import find_installer
from daemons.llmctl.up.models import ensure_smollm2, model_cache
from daemons.llmctl.up.vllm_env import CPU, Environment, ensure_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ROOT / "requirements"
BUILD_TINY = ROOT / "tests" / "support" / "build_tiny_model.py"

READ_MODEL = """
import json, sys
from safetensors import safe_open
from tokenizers import Tokenizer
folder = sys.argv[1]
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
text = "In 2024: 日本 🎉 <|im_end|>"
ids = tokenizer.encode(text).ids
with safe_open(folder + "/model.safetensors", framework="pt") as weights:
    finite = all(bool(weights.get_tensor(name).isfinite().all()) for name in weights.keys())
    names = len(weights.keys())
print(json.dumps({
    "tokens": tokenizer.encode("In 2024").tokens,
    "last": ids[-1],
    "decoded": tokenizer.decode(ids, skip_special_tokens=False) == text,
    "finite": finite,
    "tensors": names,
}))
"""


class Silent:
    """A `Progress` nobody looks at."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def advance(self, done: float, total: float) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def environment() -> Environment:
    return ensure_vllm(
        ROOT / ".venv-vllm",
        LOCKS,
        CPU,
        host=Host.detect(),
        installer=find_installer(),
        progress=Silent(),
    )


@pytest.fixture(scope="module")
def smollm2(environment: Environment) -> Path:
    return ensure_smollm2(
        model_cache(), LOCKS, python=environment.python, installer=find_installer(), progress=Silent()
    )


def run(environment: Environment, *arguments: str) -> str:
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "VLLM_NO_USAGE_STATS": "1"}
    return subprocess.run(
        [str(environment.python), *arguments], env=variables, check=True, capture_output=True, text=True
    ).stdout


def test_vllm_says_its_release(environment: Environment) -> None:
    assert run(environment, str(environment.vllm), "--version").split()[-1] == environment.version


def test_vllm_sees_the_cpu_as_its_platform(environment: Environment) -> None:
    code = "from vllm.platforms import current_platform; print(current_platform.device_type)"
    assert run(environment, "-c", code).split()[-1] == "cpu"


def test_smollm2_is_whole_and_splits_digits(environment: Environment, smollm2: Path) -> None:
    found: dict[str, Any] = json.loads(run(environment, "-c", READ_MODEL, str(smollm2)))
    assert found == {
        "tokens": ["In", "Ġ", "2", "0", "2", "4"],
        "last": 2,
        "decoded": True,
        "finite": True,
        "tensors": 272,
    }
    generation = json.loads((smollm2 / "generation_config.json").read_text())
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert generation == ids | {"do_sample": False, "temperature": 0.0}
    assert "<|im_start|>" in (smollm2 / "chat_template.jinja").read_text()


def test_the_tiny_model_is_the_same_bytes_everywhere(environment: Environment, tmp_path: Path) -> None:
    cached = Path(run(environment, str(BUILD_TINY)).strip())
    built = Path(run(environment, str(BUILD_TINY), str(tmp_path / "tiny")).strip())
    names = {file.name for file in built.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert {file.name: file.read_bytes() for file in cached.iterdir()} == {
        name: (built / name).read_bytes() for name in names
    }
