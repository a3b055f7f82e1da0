"""What an interrupted run wrote and nobody took over."""

import os
import runpy
from collections.abc import Mapping
from pathlib import Path

from tests.unit.deploy import playbook

stale = runpy.run_path(str(playbook.ANSIBLE / "files/stale_units.py"))["stale"]
RUNNING = ("llm-engine@a.service", "llm-engine@b.service", "llm-gateway.service", "nginx.service")

FILES = ("engines/a.yaml", "engines/b.yaml", "gateway.yaml", "credentials/engine-key-gpu2", "tls.pem")


def found(root: Path, files: Mapping[str, float], reloaded: float = 100) -> list[tuple[str, str]]:
    """What is stale where `files` changed at these times, all units started at 100."""
    for name in (
        "engines/a.yaml",
        "engines/b.yaml",
        "gateway.yaml",
        "credentials/engine-key-gpu2",
        "tls.pem",
    ):
        file = root / "etc/llm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        changed = files.get(name, 50)
        os.utime(file, (changed, changed))
    return list(stale(lambda unit: (100, reloaded) if unit in RUNNING else None, str(root)))


def test_nothing_is_stale_after_a_whole_run(tmp_path: Path) -> None:
    assert found(tmp_path, {}) == []


def test_only_what_changed_since_its_start_is_restarted(tmp_path: Path) -> None:
    assert found(tmp_path, {"engines/b.yaml": 101}) == [("restart", "llm-engine@b.service")]


def test_what_can_be_reloaded_is_not_restarted(tmp_path: Path) -> None:
    changed = {"gateway.yaml": 101.0, "tls.pem": 101.0}
    assert found(tmp_path, changed) == [("reload", "llm-gateway.service"), ("reload", "nginx.service")]
    assert found(tmp_path, changed, reloaded=102) == []
    changed["credentials/engine-key-gpu2"] = 101
    assert ("restart", "llm-gateway.service") in found(tmp_path, changed, reloaded=102)
