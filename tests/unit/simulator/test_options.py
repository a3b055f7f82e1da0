"""The command line: vLLM's flags are taken or refused as vLLM takes or refuses them."""

from pathlib import Path

import pytest

from daemons.simulator import options

FLAGS = Path(options.__file__).with_name("vllm-0.32-flags.txt").read_text(encoding="ascii").splitlines()
TYPED = {
    "--gpu-memory-utilization": "0.9",
    "--device-memory-utilization": "0.9",
    "--enable-prefix-caching": "",
    "--uds": "/tmp/x.sock",
    "--runner": "pooling",
}


@pytest.mark.parametrize("line", FLAGS)
def test_every_flag_of_vllm_is_accepted_in_each_of_its_spellings(line: str) -> None:
    arity, *names = line.split()
    for name in names:
        if name == "--config":
            continue
        values = [] if arity in "0?" else [TYPED.get(names[0], "4")]
        options.parse(["serve", "m", name, *values])


def test_the_flags_of_the_help_are_all_there() -> None:
    assert len(FLAGS) == 316


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--swap-space", "4", "--foo"], "unrecognized arguments: --swap-space 4 --foo"),
        (["--disable-log-requests"], "unrecognized arguments: --disable-log-requests"),
        (["--max-num-seqs", "abc"], "argument --max-num-seqs: invalid int value: 'abc'"),
        (["--port"], "argument --port: expected one argument"),
        (["--sim-fault", "explode"], "argument --sim-fault: 'explode': fault: Input should be"),
        (["--sim-fault", "slow,factor"], "argument --sim-fault: 'slow,factor': 'factor' is not key=value"),
    ],
)
def test_what_vllm_refuses_ends_with_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(["serve", "m", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_underscores_equals_signs_and_dotted_json_are_understood() -> None:
    parsed = options.parse(
        ["serve", "m", "--max_model_len=4k", "--compilation-config.mode=3", "--max-num-seqs", "7"]
    )
    assert (parsed.max_model_len, parsed.max_num_seqs) == (4000, 7)


@pytest.mark.parametrize(("text", "value"), [("4096", 4096), ("4k", 4000), ("4K", 4096), ("auto", None)])
def test_token_counts_have_units(text: str, value: int | None) -> None:
    assert options.parse(["serve", "m", "--max-model-len", text]).max_model_len == value


def test_a_config_file_gives_flags_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("port: 9000\nmax_num_seqs: 5\napi-key: [a, b]\nenforce-eager: true\nheadless: false\n")
    parsed = options.parse(["serve", "m", "--config", str(file), "--port", "9001"])
    assert (parsed.port, parsed.max_num_seqs, parsed.api_key, parsed.enforce_eager) == (
        9001,
        5,
        ["a", "b"],
        True,
    )


def test_a_config_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(["serve", "m", "--config", str(tmp_path / "none.yaml")])
    assert "none.yaml" in capsys.readouterr().err


def test_the_model_is_the_name_where_none_is_given() -> None:
    parsed = options.parse(["serve", "meta/llama"])
    assert (parsed.model, parsed.served_model_name) == ("meta/llama", ["meta/llama"])


@pytest.mark.parametrize("arguments", [["--version"], ["-v"]])
def test_the_version_is_vllms_and_our_own(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(arguments)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("0.32.0 (llm-simulator ")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"]])
def test_the_help_teaches(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(arguments)
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "without a GPU" in text
    assert "/sim/faults" in text
    assert all(kind in text for kind in ("hang", "death", "truncate", "malformed"))


def test_the_whole_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(["serve", "--help=all"])
    listed = capsys.readouterr().out.split("every flag of vllm serve:")[1]
    assert listed.count("\n  -") == len(FLAGS)
    assert "  --tensor-parallel-size TENSOR_PARALLEL_SIZE, -tp TENSOR_PARALLEL_SIZE\n" in listed


def test_another_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(["bench"])
    assert ended.value.code == 2
    assert "invalid choice: 'bench'" in capsys.readouterr().err
