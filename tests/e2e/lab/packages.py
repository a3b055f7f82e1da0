"""Signed apt repositories of stub packages, for what a closed network cannot give: NVIDIA's and Grafana's.

Only the contents are stubs. The roles' own steps fetch the key, add the repository, install the pinned
version, hold it and start its units, as on a real host.
"""

import hashlib
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORIES = "/srv/packages"
"""Where hosts see the folder of repositories."""
PROGRAMS = ("dpkg-deb", "gpg", "gcc")


@dataclass(frozen=True, slots=True)
class Package:
    """A package: `files` by path, executable where they begin with ``#!``; `links` by path."""

    name: str
    version: str
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    depends: tuple[str, ...] = ()
    postinst: str = ""

    def build(self, folder: Path) -> Path:
        """Write the ``.deb`` into `folder`."""
        tree = folder / f"{self.name}.tree"
        control = [f"Package: {self.name}", f"Version: {self.version}", "Architecture: all"]
        control += ["Maintainer: LLM stack tests <root@localhost>", f"Description: stub of {self.name}"]
        if self.depends:
            control.append(f"Depends: {', '.join(self.depends)}")
        _write(tree / "DEBIAN/control", ("\n".join(control) + "\n").encode())
        if self.postinst:
            _write(tree / "DEBIAN/postinst", f"#!/bin/sh\nset -e\n{self.postinst}\n".encode())
        for path, content in self.files.items():
            _write(tree / path.lstrip("/"), content)
        for path, target in self.links.items():
            (tree / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (tree / path.lstrip("/")).symlink_to(target)
        package = folder / f"{self.name}_{self.version}_all.deb"
        build = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(package)]
        subprocess.run(build, check=True, capture_output=True)
        shutil.rmtree(tree)
        return package


def publish(folder: Path, packages: list[Package]) -> None:
    """A signed repository of `packages` in `folder`, its public key in ``key.asc``."""
    folder.mkdir(parents=True)
    index = b"".join(_entry(package.build(folder)) for package in packages)
    (folder / "Packages").write_bytes(index)
    listed = f" {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
    (folder / "Release").write_text(f"Origin: stubs\nSuite: stable\nSHA256:\n{listed}")
    home = folder / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--no-tty", "--passphrase", ""]
    name = "stubs@localhost"
    for command in (
        ["--quick-generate-key", name, "rsa2048", "sign", "never"],
        ["--clearsign", "--output", str(folder / "InRelease"), str(folder / "Release")],
        ["--armor", "--output", str(folder / "key.asc"), "--export", name],
    ):
        subprocess.run([*gpg, *command], check=True, capture_output=True)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)
    shutil.rmtree(home)


def _entry(package: Path) -> bytes:
    control = subprocess.run(["dpkg-deb", "--field", str(package)], check=True, capture_output=True).stdout
    content = package.read_bytes()
    about = (
        f"Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
    )
    return control + about.encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755 if content.startswith(b"#!") else 0o644)
