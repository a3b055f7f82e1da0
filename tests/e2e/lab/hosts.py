"""Booting, entering and taking down test hosts, and the network between them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.e2e.lab import gpus, image, packages, registries
from tests.e2e.lab.host import NETWORK, Host, LabError, execute

BRIDGE = "llme2e0"
PROXY_PORT = 3142
RECORD = Path("/run/llm-e2e")
"""Holds the folder of the lab that is up; there is one network for it."""
MIRROR = "/srv/mirror"
"""Where hosts see the folder of downloads."""
HERE = Path(__file__).parent
PROGRAMS = ("systemd-nspawn", "mmdebstrap", "ip", "nsenter", "ssh", "ssh-keygen", *packages.PROGRAMS)
PACKAGES = "systemd-container mmdebstrap iproute2 openssh-client procps gcc libc6-dev gnupg"
_NSPAWN = (
    # The machine has no system bus to register at.
    "--register=no",
    "--keep-unit",
    "--kill-signal=SIGRTMIN+3",
    "--link-journal=no",
    "--resolv-conf=off",
    "--timezone=off",
    "--console=read-only",
    "--capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON,CAP_IPC_LOCK,CAP_SYSLOG",
    # Without bpf() IPAddressDeny= is accepted and not enforced.
    "--system-call-filter=bpf keyctl add_key request_key",
)


def missing() -> str | None:
    """Why test hosts cannot be booted here, with the cure; None where they can."""
    if os.geteuid() != 0:
        return "booting test hosts needs root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install {PACKAGES}"
    if not registries.apt_sources() and not image.kept_archive().exists():
        return f"apt on this machine knows no Debian {registries.SUITE} archive to build the hosts from"
    if not Path("/sys/fs/cgroup/devices").is_dir():
        return "this machine has no cgroup v1 controllers, which test hosts are given a share of"
    return _refused()


def _refused() -> str | None:
    """What this machine does not let root do."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for name in ("base", "up", "work", "root"):
            Path(folder, name).mkdir()
        options = f"lowerdir={folder}/base,upperdir={folder}/up,workdir={folder}/work"
        mount = ("mount", "-t", "overlay", "llm-e2e-probe", "-o", options, f"{folder}/root")
        done = execute("unshare", "--mount", "--net", *mount, check=False)
    return f"root may not make namespaces and mounts here: {done.stderr.strip()}" if done.returncode else None


class Lab:
    """A bridge, a proxy to the package registries, and the hosts; `mirror` is the folder of downloads."""

    def __init__(self, work: Path, mirror: Path) -> None:
        self.work = work
        self.mirror = mirror
        self.base = work / "base"
        self.hosts: dict[str, Host] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    @classmethod
    def found(cls, work: Path, mirror: Path) -> "Lab":
        """The lab in `work` with the hosts that an earlier process booted."""
        lab = cls(work, mirror)
        for folder in sorted((work / "hosts").glob("*")):
            lab.hosts[folder.name] = Host(folder.name, int((folder / "number").read_text()), folder)
        return lab

    @property
    def gateway(self) -> str:
        """This machine's address on the test network."""
        return f"{NETWORK}.1"

    def up(self) -> None:
        """Build the base system and bring the network up.

        Raises:
            LabError: another lab is up, and whoever opened it is too.
        """
        self._replace_abandoned()
        RECORD.write_text(f"{os.getpid()} {self.work}")
        for folder in (self.work, self.mirror):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.base.exists():
            image.build(self.base, self.work, self.gateway, PROXY_PORT)
            gpus.publish_stubs(self.work / "packages")
        execute("ip", "link", "add", BRIDGE, "type", "bridge")
        execute("ip", "addr", "add", f"{self.gateway}/24", "dev", BRIDGE)
        execute("ip", "link", "set", BRIDGE, "up")
        self._proxy()

    @staticmethod
    def is_up() -> bool:
        """Whether the network is there, with whatever hosts."""
        return execute("ip", "link", "show", BRIDGE, check=False).returncode == 0

    def _replace_abandoned(self) -> None:
        """Take down what a killed run has left."""
        if not RECORD.exists():
            return
        pid, _, folder = RECORD.read_text().partition(" ")
        if Path(f"/proc/{pid}").exists():
            raise LabError(f"process {pid} has hosts up in {folder}: let it end, or kill it")
        Lab.found(Path(folder), self.mirror).down()
        if Path(folder) != self.work:
            shutil.rmtree(folder, ignore_errors=True)

    def _proxy(self) -> None:
        with (self.work / "proxy.log").open("w") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    str(HERE / "proxy.py"),
                    self.gateway,
                    str(PROXY_PORT),
                    *registries.allowed(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        (self.work / "proxy.pid").write_text(str(process.pid))

    def boot(
        self,
        name: str,
        number: int,
        prepare: Callable[[Path], None] | None = None,
    ) -> Host:
        """Boot a fresh host at ``NETWORK.number``; `prepare` is given its root file system before."""
        host = Host(name, number, self.work / "hosts" / name)
        for folder in ("up", "work", "root"):
            (host.folder / folder).mkdir(parents=True)
        (host.folder / "number").write_text(str(number))
        self.hosts[name] = host
        self._link(host)
        options = f"lowerdir={self.base},upperdir={host.folder}/up,workdir={host.folder}/work"
        execute("mount", "-t", "overlay", f"llm-e2e-{name}", "-o", options, host.root)
        (host.root / "etc/hostname").write_text(f"{name}\n")
        known = [f"{one.address} {one.name}" for one in self.hosts.values()]
        (host.root / "etc/hosts").write_text("\n".join(["127.0.0.1 localhost", "::1 localhost", *known, ""]))
        if prepare is not None:
            prepare(host.root)
        self._launch(host)
        host.wait_booted()
        return host

    def _link(self, host: Host) -> None:
        outer = f"llme2e{host.number}"
        execute("ip", "netns", "add", host.name)
        execute("ip", "link", "add", outer, "type", "veth", "peer", "name", "host0", "netns", host.name)
        execute("ip", "link", "set", outer, "master", BRIDGE, "up")
        inside = ("ip", "-n", host.name)
        execute(*inside, "addr", "add", f"{host.address}/24", "dev", "host0")
        execute(*inside, "link", "set", "host0", "up")
        execute(*inside, "link", "set", "lo", "up")
        execute(*inside, "route", "add", "default", "via", self.gateway)

    def _launch(self, host: Host) -> None:
        binds = [
            f"--bind-ro={HERE / 'guest-init'}:/run/guest-init",
            f"--bind-ro={self.mirror}:{MIRROR}",
            f"--bind-ro={self.work / 'packages'}:{packages.REPOSITORIES}",
        ]
        command = [
            *(str(HERE / "launch"), f"llm-e2e-{host.name}", "systemd-nspawn", "-D", str(host.root)),
            *(f"--machine={host.name}", f"--network-namespace-path=/run/netns/{host.name}"),
            *_NSPAWN,
            *binds,
            "/run/guest-init",
        ]
        with (host.folder / "console.log").open("w") as console:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                # Playbooks may set net.* inside the host's own network namespace.
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            )
        self._processes.append(process)
        (host.folder / "pid").write_text(str(process.pid))

    def cut(self, host: Host) -> None:
        """Take the host off the network, as a pulled cable does."""
        execute("ip", "link", "set", f"llme2e{host.number}", "down")

    def mend(self, host: Host) -> None:
        """Put a cut host back on the network."""
        execute("ip", "link", "set", f"llme2e{host.number}", "up")

    def remove(self, host: Host) -> None:
        """Power the host off and remove everything of it."""
        self._stop(host)
        execute("ip", "link", "del", f"llme2e{host.number}", check=False)
        execute("umount", "-l", host.root, check=False)
        execute("ip", "netns", "del", host.name, check=False)
        for hierarchy in Path("/sys/fs/cgroup").iterdir():
            _remove_cgroups(hierarchy / f"llm-e2e-{host.name}")
        shutil.rmtree(host.folder, ignore_errors=True)
        shutil.rmtree(Path("/run/systemd/nspawn/propagate") / host.name, ignore_errors=True)
        self.hosts.pop(host.name, None)

    def _stop(self, host: Host) -> None:
        try:
            launcher = int((host.folder / "pid").read_text())
        except (OSError, ValueError):
            return
        with contextlib.suppress(LabError, subprocess.TimeoutExpired):
            host.run("systemctl", "poweroff", check=False, timeout=10)
        if _gone(launcher, 20):
            return
        leader = host.leader()
        for pid in (launcher, leader):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _gone(launcher, 5)

    def leave(self) -> None:
        """Let everything run on when this process ends; `found` finds it again."""
        for process in self._processes:
            # Nobody waits for it, and that is meant.
            process.returncode = 0
        # It belongs to nobody from now on, and stays until a run without it, or `down`.
        RECORD.write_text(f"0 {self.work}")

    def down(self) -> None:
        """Remove the hosts and the network; the base system stays until its folder goes."""
        for host in list(self.hosts.values()):
            self.remove(host)
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.work / "proxy.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            _gone(pid, 5)
        for process in self._processes:
            process.wait(10)
        execute("ip", "link", "del", BRIDGE, check=False)
        RECORD.unlink(missing_ok=True)


def _gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists() or _zombie(pid):
            return True
        time.sleep(0.05)
    return False


def _zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _remove_cgroups(top: Path) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


@contextlib.contextmanager
def opened(work: Path, mirror: Path) -> Iterator[Lab]:
    """A lab in `work`, taken down at the end whatever happens."""
    lab = Lab(work, mirror)
    try:
        lab.up()
        yield lab
    finally:
        lab.down()
