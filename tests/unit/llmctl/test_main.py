"""What holds for every verb of ``llmctl``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemons.llmctl import gateway_files
from daemons.llmctl.__main__ import main, parser


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    command = [sys.executable, "-m", "daemons.llmctl", "config", "schema", "gateway"]
    reading, writing = os.pipe()
    # Before the program begins: what a pipe has room for could be written before it is closed.
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_models_are_looked_for_where_they_are_downloaded_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_files, "_CHECKOUT_DIR", tmp_path)
    for verb in (["plan", "m"], ["download", "m"], ["models", "list"]):
        args = parser().parse_args(verb)
        assert (args.models_dir, args.config_dir) == (tmp_path / "models", tmp_path), verb


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("doctor", ("deployed to", "3 when nothing was deployed")),
        ("top", ("for 15 s after one has ended", "llmctl usage")),
    ],
)
def test_the_help_says_what_surprised_people(
    verb: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert [word for word in words if word not in said] == []
