"""The commands that docs/operations.md names exist; that they work is shown by tests/e2e."""

import re
from pathlib import Path

import pytest

from daemons.llmctl.__main__ import main, parser
from tests.e2e import manual

ROOT = Path(__file__).parents[3]
HOST = manual.on_the_host(HOST="localhost", NAME="a", KEY="sk")


@pytest.mark.parametrize("command", manual.on_the_controller())
def test_playbooks_and_targets_exist(command: str) -> None:
    program, *words = command.split()
    if program == "make":
        assert re.search(rf"^{words[0]}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert (program, words[:2]) == ("ansible-playbook", ["-i", "INV"])
        assert (ROOT / "ansible" / words[2]).is_file()


@pytest.mark.parametrize("command", [one for one in HOST if one.startswith("llmctl")])
def test_verbs_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split()[1:], "--help"])
    assert ended.value.code == 0
    assert "usage: llmctl" in capsys.readouterr().out


BLOCKS = re.findall(
    r"^```sh\n(.*?)^```$", (ROOT / "docs" / "tenants.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("command", [line for block in BLOCKS for line in block.splitlines()])
def test_commands_about_tenants_are_read_as_they_stand(command: str) -> None:
    program, *words = command.split()
    assert program == "llmctl"
    assert callable(parser().parse_args(words).run)


def test_no_placeholder_is_left() -> None:
    # What is written in capitals is replaced, or a method of HTTP, or an abbreviation of a log.
    assert [one for one in HOST if re.search(r"\b[A-Z]{3,}\b", one)] == []


def test_what_is_not_run_is_in_the_manual() -> None:
    assert set(manual.NOT_RUN) <= set(manual.on_the_controller())
