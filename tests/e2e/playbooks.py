"""Running the project's playbooks against test hosts."""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.e2e.lab.host import Host
from tests.e2e.lab.hosts import MIRROR
from tests.e2e.lab.packages import REPOSITORIES

Result = TypeVar("Result")
ANSIBLE = Path(__file__).parents[2] / "ansible"
HF_TOKEN = "hf_e2eTokenThatMustNotShowAnywhere"
TINY = {
    "name": "tiny-a",
    "model": "/var/lib/llm/models/tiny",
    "served_names": ["tiny"],
    "gpus": [0],
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 67108864,
    "metrics_port": 9110,
    "stop": {"drain_seconds": 20},
    # vLLM's CPU build runs in place of the one for GPUs: it has no compiler.
    "enforce_eager": True,
    "environment": {"TORCHDYNAMO_DISABLE": "1"},
}
SIMULATED = {
    **TINY,
    "name": "tiny-b",
    "gpus": [1],
    "metrics_port": 9111,
    "vllm": ["/opt/llm/current/bin/llm-simulator"],
}
"""Serves the same model on the other GPU; the simulator, since vLLM takes half a minute to start."""
STUBS = {
    "vllm_variant": "cpu",
    "nvidia_driver_source": "nvidia",
    "nvidia_driver_repository": f"deb [signed-by=/etc/apt/keyrings/nvidia.asc] file:{REPOSITORIES}/nvidia ./",
    "nvidia_driver_repository_key": f"file://{REPOSITORIES}/nvidia/key.asc",
    "cuda_enabled": True,
    "grafana_repository": f"deb [signed-by=/etc/apt/keyrings/grafana.asc] file:{REPOSITORIES}/grafana ./",
    "grafana_repository_key": f"file://{REPOSITORIES}/grafana/key.asc",
}


def until(seconds: float, action: Callable[[], Result]) -> Result:
    """What `action` returns once it is true.

    Raises:
        AssertionError: it stays false for `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        if result := action():
            return result
        assert time.monotonic() < deadline, f"still {result!r} after {seconds} s"
        time.sleep(0.3)


def replace(path: Path, text: str) -> None:
    """Change a file as a whole."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run said."""

    status: int
    output: str

    def count(self, host: str, word: str) -> int:
        """A number of the recap, for example of ``changed``."""
        found = re.search(rf"^{re.escape(host)}\s*:.*\b{word}=(\d+)", self.output, flags=re.MULTILINE)
        assert found, self.output[-3000:]
        return int(found[1])

    def changed_tasks(self) -> list[str]:
        """Names of the tasks that changed something."""
        task, changed = "", []
        for line in self.output.splitlines():
            if line.startswith(("TASK [", "RUNNING HANDLER [")):
                task = line.rstrip("* ")
            elif line.startswith("changed:"):
                changed.append(task)
        return changed


@dataclass
class Playbooks:
    """Runs playbooks with an inventory of test hosts.

    Attributes:
        said: everything that any run printed.
        commands: what was run, as docs/operations.md writes it.
    """

    folder: Path
    ssh_key: Path
    wheel: Path
    environment: dict[str, str]
    said: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def inventory(
        self,
        groups: dict[str, list[Host]],
        group_variables: dict[str, dict[str, Any]] | None = None,
        **variables: Any,
    ) -> None:
        """Write the inventory for the runs that follow."""
        every = {host.name: host for members in groups.values() for host in members}
        shared = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.ssh_key),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            "llm_mirror_wheels": f"{MIRROR}/wheels",
            "release_wheel": str(self.wheel),
            # A test host shares the machine's clock, memory and disk.
            "preflight_clock": False,
            "preflight_memory_gib": 4,
            "preflight_models_disk_gib": 1,
            "preflight_system_disk_gib": 5,
            "prometheus_source": "package",
            **STUBS,
            "llm_hf_token": HF_TOKEN,
            "log_shipper_enabled": True,
            # Nobody is there: the stub idles.
            "log_shipper_url": "https://logs.invalid/loki/api/v1/push",
            "llm_keys": [{"name": "team-a", "class": "default"}],
            **variables,
        }
        listed = {
            name: {"ansible_host": one.address, "llm_address": one.address} for name, one in every.items()
        }
        inventory: dict[str, Any] = {"all": {"hosts": listed, "vars": shared}}
        for group, members in groups.items():
            inventory[group] = {"hosts": {host.name: None for host in members}}
            inventory[group]["vars"] = (group_variables or {}).get(group, {})
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))

    def run(self, playbook: str, *arguments: str) -> Outcome:
        """Run `playbook`; never raises for a failed run."""
        program = str(Path(sys.executable).parent / "ansible-playbook")
        given = [shlex.quote(one) if one.startswith("{") else one for one in arguments]
        self.commands.append(" ".join(["ansible-playbook -i INV", playbook, *given]))
        return self._run([program, "-i", str(self.folder / "hosts.yml"), str(ANSIBLE / playbook), *arguments])

    def make_deploy(self) -> Outcome:
        """What ``make deploy`` does, with an ansible-core of its own."""
        self.commands.append("make deploy INVENTORY=INV")
        return self._run(["make", "-C", str(ANSIBLE.parent), "deploy", f"INVENTORY={self.folder}/hosts.yml"])

    def _run(self, command: list[str]) -> Outcome:
        log = self.folder / f"{len(self.said):02}.log"
        began = time.monotonic()
        with (
            subprocess.Popen(
                command,
                cwd=ANSIBLE,
                env={
                    **self.environment,
                    "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
                    "ANSIBLE_NOCOLOR": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
            log.open("w", buffering=1) as timed,
        ):
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                timed.write(f"{time.monotonic() - began:7.1f} {line}")
        output = "".join(lines)
        self.said.append(output)
        return Outcome(process.returncode, output)

    def must(self, playbook: str, *arguments: str) -> Outcome:
        """Run `playbook`, which must succeed."""
        outcome = self.run(playbook, *arguments)
        assert outcome.status == 0, outcome.output[-6000:]
        return outcome
