"""``llmctl import-env``: one test for each name of the original, and for what a file may look like."""

import argparse
import contextlib
import hashlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from daemons.engine.config import EngineSettings
from daemons.llmctl import import_env
from daemons.llmctl.import_env import Import, convert, host_memory_gib, parse_env
from daemons.runtime.errors import Fatal


def converted(**env: str) -> Import:
    return convert(env, 128.0)


def test_model_name() -> None:
    made = converted(MODEL_NAME="meta-llama/Llama-3.1-8B-Instruct")
    assert made.engine["model"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert made.engine["served_names"] == ["llama-3-1-8b-instruct"]
    made = converted(MODEL_NAME="meta-llama/Llama-3.2-7B-Instruct")
    assert made.engine["model"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert "never existed" in made.notes[0]


def test_hf_token_is_never_printed() -> None:
    made = converted(HF_TOKEN="hf_verysecret")
    assert "verysecret" not in str(made)
    assert "credential hf-token" in made.notes[0]


def test_vllm_api_key_is_not_needed() -> None:
    made = converted(VLLM_API_KEY="sk-secret")
    assert "not needed" in made.notes[0]
    assert "sk-secret" not in str(made)


def test_gateway_api_keys_become_hashes() -> None:
    made = converted(GATEWAY_API_KEYS="alpha, dev-key-1,beta")
    names = [(key["name"], key["secrets"]) for key in made.variables["llm_keys"]]
    assert names == [
        ("imported-1", [f"sha256:{hashlib.sha256(b'alpha').hexdigest()}"]),
        ("imported-3", [f"sha256:{hashlib.sha256(b'beta').hexdigest()}"]),
    ]
    assert "key 2 is a published example" in made.notes[0]


def test_tp_size() -> None:
    engine = converted(TP_SIZE="2").engine
    assert (engine["gpus"], engine["tensor_parallel_size"]) == ([0, 1], 2)


@pytest.mark.parametrize(("value", "method"), [("none", None), ("", None), ("awq", None), ("gptq", "gptq")])
def test_quantization(value: str, method: str | None) -> None:
    made = converted(QUANTIZATION=value)
    assert made.engine["quantization"] == method
    assert ("slow kernel" in " ".join(made.notes)) == (value == "awq")


def test_gpu_memory_utilization() -> None:
    made = converted(GPU_MEMORY_UTILIZATION="0.92")
    assert made.engine["gpu_memory_utilization"] == 0.92
    assert "CUDA graphs" in made.notes[0]


def test_max_model_len() -> None:
    assert converted(MAX_MODEL_LEN="8192").engine["max_model_len"] == 8192


def test_max_num_seqs() -> None:
    assert converted(MAX_NUM_SEQS="64").engine["max_num_seqs"] == 64


def test_swap_space_is_a_total_now() -> None:
    made = converted(SWAP_SPACE_GB="16", TP_SIZE="2")
    assert made.engine["kv_offload_gib"] == 32
    assert "preemption now recomputes" in made.notes[0]
    assert "only mirrors" in made.notes[0]
    assert len(made.notes) == 1
    assert "more than half" in converted(SWAP_SPACE_GB="65").notes[1]
    assert converted(SWAP_SPACE_GB="0").notes == []


def test_model_cache_dir() -> None:
    assert converted(MODEL_CACHE_DIR="/data/models").engine["models_dir"] == "/data/models"


def test_numbers_that_are_none_are_all_named() -> None:
    with pytest.raises(Fatal, match="TP_SIZE: expected a number\nMAX_MODEL_LEN: expected a number"):
        converted(TP_SIZE="two", MAX_MODEL_LEN="long")


def test_the_engine_takes_what_is_made() -> None:
    made = converted(
        MODEL_NAME="a/b", TP_SIZE="2", QUANTIZATION="awq", SWAP_SPACE_GB="4", MAX_MODEL_LEN="4096"
    )
    engine = {key: value for key, value in made.engine.items() if key not in ("name", "metrics_port")}
    assert EngineSettings.model_validate(engine | {"metrics": {"port": 9110}}).kv_offload_gib == 8


def test_files_have_comments_quotes_and_exports() -> None:
    text = "# x\n\nexport A=1\nB='two words' # note\nC=\"x#y\"\nD=v # note\nE=a#b\n"
    assert parse_env(text, Path("f")) == {"A": "1", "B": "two words", "C": "x#y", "D": "v", "E": "a#b"}
    with pytest.raises(Fatal, match="f:2: expected NAME=VALUE"):
        parse_env("A=1\nsk-secret\n", Path("f"))


@given(st.text())
def test_no_file_breaks_it(text: str) -> None:
    with contextlib.suppress(Fatal):
        convert(parse_env(text, Path("f")), 0)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    import_env.add_parser(parser.add_subparsers())
    file = tmp_path / ".env"
    file.write_text("MODEL_NAME=a/b\nCOLOUR=red\n")
    args = parser.parse_args(["import-env", str(file)])
    assert args.run(args) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["llm_engines"][0]["model"] == "a/b"
    assert "COLOUR is unknown" in err
    with pytest.raises(Fatal, match="it does not exist"):
        import_env.run(argparse.Namespace(file=tmp_path / "absent"))
    assert host_memory_gib() > 0
    assert host_memory_gib(tmp_path / "absent") == 0


def test_help_names_what_is_known_and_where_the_result_goes(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    import_env.add_parser(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["import-env", "--help"])
    text = capsys.readouterr().out
    assert "MODEL_NAME, HF_TOKEN" in text
    assert "host_vars/HOST.yml" in text
