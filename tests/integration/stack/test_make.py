"""What `make` says to a newcomer, and the commands that the README shows."""

import re
import shutil
import subprocess

import pytest

from tests.integration.stack.conftest import ROOT, Up

BIN = ROOT / ".venv" / "bin"

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def _make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_make_alone_lists_the_targets() -> None:
    listed = _make().stdout
    for target in ("up", "test", "setup", "download", "vllm", "gateway", "gpu-exporter", "monitoring"):
        assert re.search(rf"^  make {target} ", listed, re.MULTILINE), target
    for target in ("loadtest", "status", "stop", "lint", "deploy", "e2e", "bench", "soak"):
        assert re.search(rf"^  make {target} ", listed, re.MULTILINE), target


@pytest.mark.parametrize(
    ("target", "cure"),
    [
        ("deploy", "make deploy INVENTORY="),
        ("download", "make download MODEL="),
        ("mirror", "make mirror DIR="),
    ],
)
def test_a_target_that_lacks_a_word_says_which(target: str, cure: str) -> None:
    done = _make(target)
    assert done.returncode == 2
    assert cure in done.stderr
    assert "installing" not in done.stderr


def test_a_deployment_to_an_inventory_that_is_not_there_is_refused_before_anything_is_built() -> None:
    done = _make("deploy", "INVENTORY=inventory/mine")
    assert done.returncode == 2
    assert "there is no inventory inventory/mine" in done.stderr
    assert "dist" not in done.stdout + done.stderr


def test_the_load_test_finds_the_stack_on_whatever_port() -> None:
    planned = _make("--dry-run", "loadtest", "PORT=18080").stdout
    assert '--url "$(cat .llm/run/gateway.url)"' in planned


@pytest.mark.parametrize("named", ["inventory/reference-8b", "ansible/inventory/reference-8b"])
def test_an_inventory_is_named_from_the_checkout_or_from_its_ansible_folder(named: str) -> None:
    planned = _make("--dry-run", "deploy", f"INVENTORY={named}")
    assert f'-i "{ROOT}/ansible/inventory/reference-8b"' in planned.stdout


def test_every_target_that_the_readme_shows_exists() -> None:
    shown = set(re.findall(r"`?make ([a-z][a-z0-9-]*)", (ROOT / "README.md").read_text()))
    listed = set(re.findall(r"^  make ([a-z0-9-]+) ", _make().stdout, re.MULTILINE))
    assert shown - {"model", "ready"} <= listed


def test_the_readme_s_check_command_accepts_the_written_settings(simulated: Up) -> None:
    command = [str(BIN / "llm-gateway"), "--config", str(simulated.state / "gateway.yaml"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    broken = simulated.state / "broken.yaml"
    text = (simulated.state / "gateway.yaml").read_text()
    broken.write_text(text.replace("port: ", "port: eighty # "))
    command[2] = str(broken)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 78
    assert re.search(r"broken\.yaml:\d+: listen\.port: .*valid integer", done.stderr)


def test_the_status_of_a_running_stack(simulated: Up) -> None:
    command = [str(BIN / "llmctl"), "status", "--state", str(simulated.state)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"gateway +\d+ +ready", done.stdout)
