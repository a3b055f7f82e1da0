"""The commands of docs/operations.md, which scenarios run word by word."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
NOT_RUN = {
    "make mirror DIR=FOLDER": "gathers gigabytes, some of them from where a build machine does not reach; "
    "the same tool gathers the wheels that test hosts install from"
}
"""Commands that no scenario runs as they stand, and why."""


def on_the_controller() -> list[str]:
    """Commands of blocks marked ``sh``."""
    return [line for block in _blocks("sh") for line in block]


def on_the_host(**names: str) -> list[str]:
    """Commands of blocks marked ``bash``, with each placeholder (``NAME=…``) replaced."""
    commands = [line for block in _blocks("bash") for line in block]
    for name, value in names.items():
        commands = [re.sub(rf"\b{name}\b", value, command) for command in commands]
    return commands


def _blocks(language: str) -> list[list[str]]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in found]
