"""``llmctl config``."""

import argparse
import json
from pathlib import Path

import pytest

from daemons.llmctl import config, gateway_files
from daemons.runtime.errors import Fatal

ENGINE = "model: a/b\nserved_names: [b]\ngpus: []\nmetrics: {port: 9110}\n"


def llmctl(*words: str) -> int:
    parser = argparse.ArgumentParser()
    config.add_parser(parser.add_subparsers())
    args = parser.parse_args(["config", *words])
    status: int = args.run(args)
    return status


def test_check_reports_every_fault_of_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "good.yaml").write_text(ENGINE)
    assert llmctl("check", str(tmp_path)) == 0
    assert capsys.readouterr().out == "1 file, 0 faults\n"
    (tmp_path / "engines" / "bad.yaml").write_text(ENGINE + "max_num_seqs: 0\nmodle: x\n")
    (tmp_path / "gateway.yaml").write_text("listen: 5\n")
    capsys.readouterr()
    assert llmctl("check", str(tmp_path)) == 78
    faults = capsys.readouterr().err
    assert "bad.yaml:5: max_num_seqs" in faults
    assert "bad.yaml:6: modle: unknown key" in faults
    assert "gateway.yaml:1: listen" in faults


def test_check_of_nothing_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="no settings files"):
        llmctl("check", str(tmp_path))


def test_check_takes_a_single_file_whose_name_says_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("listen: 5\n")
    assert llmctl("check", str(file)) == 78
    assert "gateway.yaml:1: listen" in capsys.readouterr().err
    odd = tmp_path / "odd.yaml"
    odd.write_text("listen: 5\n")
    with pytest.raises(Fatal, match=r"odd\.yaml does not say what it is .*config show"):
        llmctl("check", str(odd))


def test_check_finds_what_up_wrote_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gateway_files, "_CHECKOUT_DIR", tmp_path)
    monkeypatch.setattr(gateway_files, "CONFIG_DIR", tmp_path / "etc")
    (tmp_path / "gpu-exporter.yaml").write_text("listen: 5\n")
    assert llmctl("check") == 78
    assert "gpu-exporter.yaml:1: listen" in capsys.readouterr().err


def test_a_list_of_known_keys_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "e.yaml").write_text(ENGINE + "modle: x\nmodell: x\n")
    assert llmctl("check", str(tmp_path)) == 78
    faults = capsys.readouterr().err
    assert (faults.count("unknown key"), faults.count("served_names, ")) == (2, 1)


@pytest.mark.parametrize("kind", list(config.MODELS))
def test_each_file_has_a_schema(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert llmctl("schema", kind) == 0
    assert json.loads(capsys.readouterr().out)["additionalProperties"] is False


def test_every_key_of_an_engine_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    llmctl("schema", "engine")
    schema = json.loads(capsys.readouterr().out)
    nameless = [
        f"{model}.{key}"
        for model, body in {"engine": schema, **schema["$defs"]}.items()
        for key, value in body["properties"].items()
        if "description" not in value
    ]
    assert nameless == []


def test_show_fills_in_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.yaml").write_text(ENGINE)
    assert llmctl("show", "engine", str(tmp_path / "e.yaml")) == 0
    assert "max_num_seqs: 256" in capsys.readouterr().out
