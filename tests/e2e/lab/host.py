"""One booted host: entering it, rebooting it."""

import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

NETWORK = "10.91.7"
_GUEST_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "container": "systemd-nspawn",
}


class LabError(RuntimeError):
    """A test host could not be made or entered."""


def execute(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command on this machine.

    Raises:
        LabError: it failed and `check` is set.
    """
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise LabError(f"{shlex.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def children(pid: int) -> list[int]:
    """Child processes of `pid`."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@dataclass(slots=True)
class Host:
    """A booted host: `run` enters it, its root file system is at ``folder/root``."""

    name: str
    number: int
    folder: Path

    @property
    def address(self) -> str:
        """Its IPv4 address on the test network."""
        return f"{NETWORK}.{self.number}"

    @property
    def root(self) -> Path:
        """Its root file system as this machine sees it."""
        return self.folder / "root"

    def leader(self) -> int | None:
        """This machine's process id of the host's PID 1, which changes with every reboot."""
        try:
            launcher = int((self.folder / "pid").read_text())
        except (OSError, ValueError):
            return None
        for nspawn in children(launcher):
            if _comm(nspawn) == "systemd-nspawn":
                for init in children(nspawn):
                    return init
        return None

    def run(
        self,
        *command: str,
        check: bool = True,
        timeout: float = 120,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` in the host as root.

        Raises:
            LabError: it failed and `check` is set, or the host is down.
        """
        leader = self.leader()
        if leader is None:
            raise LabError(f"{self.name} is not running")
        done = subprocess.run(
            ["nsenter", "-t", str(leader), "-a", "-r", "-w", "--", *command],
            capture_output=True,
            text=True,
            # The journal may hold anything.
            errors="replace",
            check=False,
            timeout=timeout,
            input=stdin,
            env=_GUEST_ENV,
        )
        if check and done.returncode:
            said = f"{done.returncode}\n{done.stdout}{done.stderr}"
            raise LabError(f"{self.name}: {shlex.join(command)}: {said}")
        return done

    def sh(self, script: str, check: bool = True, timeout: float = 120) -> str:
        """What a shell script prints in the host, without the final newline."""
        return self.run("sh", "-c", script, check=check, timeout=timeout).stdout.rstrip("\n")

    def wait_booted(self, seconds: float = 90) -> str:
        """Wait for ``running`` or ``degraded`` and return which.

        Raises:
            LabError: neither came in time, or the host died.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            leader = self.leader()
            if leader is not None and _comm(leader) == "systemd":
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in {"running", "degraded"}:
                    return state
            time.sleep(0.05)
        console = (self.folder / "console.log").read_text(errors="replace")[-2000:]
        raise LabError(f"{self.name} did not boot:\n{console}")

    def reboot(self, seconds: float = 120) -> str:
        """Reboot and wait until the host is up again."""
        before = self.leader()
        self.run("systemctl", "reboot", check=False)
        deadline = time.monotonic() + seconds
        while self.leader() == before and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.wait_booted(seconds)
