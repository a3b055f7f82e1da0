"""What this project believes of vLLM, held against the installed vLLM: its parser, its caches, its torch."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from daemons.engine.command.releases import flags_from_help, installed_version, release, table
from daemons.engine.command.render import render
from daemons.engine.config import EngineSettings
from daemons.engine.peers.trial import try_all_reduce
from daemons.engine.plan.catalogue import CONFIGS
from tests.integration.engine.conftest import PROJECT

VLLM = PROJECT / ".venv-vllm" / "bin" / "vllm"
PYTHON = VLLM.with_name("python")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not VLLM.exists(), reason="needs the real vLLM: run `make up` once"),
]

ENVIRONMENT = os.environ | {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
}

PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
parsed = vars(parser.parse_args(sys.argv[1:]))
print(json.dumps({key: parsed[key] for key in parsed}, default=str))
"""


def run(*command: str) -> str:
    """The output of vLLM's Python; on failure the test shows what it said."""
    done = subprocess.run(
        [str(PYTHON), *command], capture_output=True, text=True, timeout=500, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def settings(**changes: object) -> EngineSettings:
    base = {"model": "org/model", "served_names": ["m", "alias"], "gpus": [0, 1], "metrics": {"port": 9110}}
    return EngineSettings.model_validate(base | changes)


def test_the_installed_parser_takes_every_command_that_can_be_rendered() -> None:
    full = settings(
        tensor_parallel_size=2,
        quantization="gptq",
        kv_offload_gib=8,
        revision="abc",
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 30,
        max_model_len=8192,
        extra_args={"enable_prefix_caching": False, "hf-overrides": {"a": 1}, "kv-cache-dtype": "fp8"},
    )
    command = render(
        full,
        release(installed_version([str(VLLM)])),
        "org/model",
        Path("/run/e/api.sock"),
        direct_access=False,
    )
    parsed = json.loads(run("-c", PARSE, *command[2:]).splitlines()[-1])
    expected = {
        "model_tag": "org/model",
        "uds": "/run/e/api.sock",
        "served_model_name": ["m", "alias"],
        "tensor_parallel_size": 2,
        "quantization": "gptq",
        "kv_offloading_size": 8.0,
        "revision": "abc",
        "enforce_eager": True,
        "kv_cache_memory_bytes": 1 << 30,
        "max_model_len": 8192,
        "gpu_memory_utilization": 0.9,
        "disable_custom_all_reduce": True,
        "enable_prefix_caching": False,
        "hf_overrides": {"a": 1},
        "kv_cache_dtype": "fp8",
        "shutdown_timeout": 60,
        "disable_uvicorn_access_log": True,
    }
    assert {key: parsed[key] for key in expected} == expected


def test_the_table_holds_the_flags_of_the_installed_release() -> None:
    said = subprocess.run(
        [str(VLLM), "serve", "--help=all"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=ENVIRONMENT,
    ).stdout
    known = set(table()[installed_version([str(VLLM)])].flags)
    asked = flags_from_help(said)
    assert len(asked) > 200
    assert asked - {"help"} <= known


def test_the_specifications_that_plans_are_held_against_are_vllms(tmp_path: Path) -> None:
    configs = tmp_path / "configs.json"
    # Quantized weights would be packed and could not be counted; the cache does not depend on them.
    plain = {
        name: {key: value for key, value in config.items() if key != "quantization_config"}
        for name, config in CONFIGS.items()
    }
    configs.write_text(json.dumps(plain))
    script = PROJECT / "tests" / "support" / "vllm_kv_specs.py"
    said = json.loads(run(str(script), str(configs), str(20 << 30), "8192"))
    committed = json.loads((PROJECT / "tests" / "unit" / "engine" / "kv_specs.json").read_text())
    assert said["models"] == committed["models"]


def test_two_ranks_add_up_for_real() -> None:
    outcome = try_all_reduce(
        str(VLLM), 2, ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    )
    assert outcome.worked
    assert outcome.said.endswith(" s")
