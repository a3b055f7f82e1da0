"""The root file system every test host starts from: a minimal Debian, its archive kept between runs."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.e2e.lab.registries import SUITE, apt_sources

PACKAGES = [
    "acl",
    "ca-certificates",
    "curl",
    "dbus",
    "gpg",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libnss-systemd",
    "libpam-systemd",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
]
MASKED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "dpkg-db-backup.timer",
    "console-getty.service",
    "systemd-networkd-wait-online.service",
]
_UNDATED = ('Acquire::Check-Valid-Until "false";', 'Acquire::Check-Date "false";')
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")


def cache_folder() -> Path:
    """Where archives that are costly to make lie between runs; everything works without it."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "llm-inference-stack" / "e2e"


def build(root: Path, work: Path, address: str, proxy_port: int) -> None:
    """Unpack the base system into `root` and prepare it for hosts whose gateway is `address`.

    `work` receives the ssh key pair the hosts accept.
    """
    archive = _archive(work)
    root.mkdir(parents=True)
    subprocess.run(["tar", "-C", root, "-xf", archive], check=True)
    _package_clients(root, f"http://{address}:{proxy_port}")
    _ssh(root, work)
    for unit in MASKED:
        _link(root / "etc/systemd/system" / unit)
    (root / "etc/machine-id").write_text("")
    (root / "etc/resolv.conf").write_text("")
    (root / "var/log/journal").mkdir(parents=True, exist_ok=True)
    # Ansible's apt module takes the age of this folder for the age of the lists, which are not there yet.
    os.utime(root / "var/lib/apt/lists", (0, 0))


def kept_archive() -> Path:
    """Where the archive of the base system lies, once it is made."""
    made_of = hashlib.sha256(" ".join([SUITE, *PACKAGES]).encode()).hexdigest()
    return cache_folder() / f"base-{made_of[:16]}.tar"


def _archive(work: Path) -> Path:
    kept = kept_archive()
    if kept.is_file():
        return kept
    made = work / "base.tar"
    sources = work / "base.list"
    sources.write_text("\n".join(source.line() for source in apt_sources()) + "\n")
    subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--format=tar", "--variant=apt", f"--include={','.join(PACKAGES)}"),
            *(f"--aptopt={option.rstrip(';')}" for option in _UNDATED),
            # Nobody needs a test host after a power cut.
            "--dpkgopt=force-unsafe-io",
            *(SUITE, str(made), str(sources)),
        ],
        check=True,
    )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(made, partial)
        partial.rename(kept)
    except OSError:
        return made
    return kept


def _package_clients(root: Path, proxy: str) -> None:
    options = [
        f'Acquire::http::Proxy "{proxy}";',
        *_UNDATED,
        'Acquire::Languages "none";',
        'APT::Install-Recommends "false";',
    ]
    (root / "etc/apt/apt.conf.d/99test-host").write_text("\n".join(options) + "\n")
    # Not while the base is built: the filter for that takes longer than all else.
    left_out = "".join(f"path-exclude={path}\n" for path in _LEFT_OUT)
    (root / "etc/dpkg/dpkg.cfg.d/99test-host").write_text(left_out)
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if bundle.is_file():
        shutil.copyfile(bundle, root / "etc/ssl/certs/ca-certificates.crt")
    (root / "etc/pip.conf").write_text(
        f"[global]\nproxy = {proxy}\ncert = /etc/ssl/certs/ca-certificates.crt\n"
        "disable-pip-version-check = true\n"
    )


def _ssh(root: Path, work: Path) -> None:
    for name in ("id", "hostkey"):
        if not (work / name).exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / name)], check=True
            )
    for stale in (root / "etc/ssh").glob("ssh_host_*"):
        stale.unlink()
    _install(work / "hostkey", root / "etc/ssh/ssh_host_ed25519_key", 0o600)
    _install(work / "hostkey.pub", root / "etc/ssh/ssh_host_ed25519_key.pub", 0o644)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    _install(work / "id.pub", root / "root/.ssh/authorized_keys", 0o600)


def _install(source: Path, target: Path, mode: int) -> None:
    shutil.copyfile(source, target)
    target.chmod(mode)


def _link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/null")
