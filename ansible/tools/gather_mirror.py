"""Gathers into a folder what a deployment downloads, for hosts that reach nothing else (``make mirror``).

The folder holds ``wheels/`` (the daemons' and vLLM's, by their hash locks), ``archives/`` (Prometheus) and
``python/`` (the interpreter for systems whose own is too old). Offer it by any web server, or copy it to the
hosts, and name it in the inventory: ``llm_mirror_wheels``, ``llm_mirror_archives``, ``llm_mirror_python``.
Models (``llm_mirror_models``) and packages (``llm_mirror_apt``) come from mirrors of their own kind.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from packaging.markers import Marker

REPO = Path(__file__).parents[2]
KINDS = ("wheels", "archives", "python")


def locks(variant: str) -> list[Path]:
    """The locks whose packages a deployment installs."""
    # An extra's lock holds the daemons' packages, too. Inventories turn both extras on (`release_lock`).
    names = ("build.txt", "redis.txt", "otel.txt", f"vllm-{variant}.txt")
    return [REPO / "requirements" / name for name in names]


def for_hosts(lock: str, python: str) -> str:
    """A lock's text as hosts with any Python `python` (``3.11``) read it.

    pip would decide by the Python that runs it, and hosts differ in the last digit: Debian 12 has 3.11.2.
    """
    versions = [f"{python}.{patch}" for patch in (0, 99)]
    kept: list[str] = []
    for entry in re.split(r"^(?=\S)", lock, flags=re.MULTILINE):
        first, newline, hashes = entry.partition("\n")
        requirement, condition, marker = first.removesuffix(" \\").partition(" ; ")
        if not condition:
            kept.append(entry)
        elif any(
            Marker(marker).evaluate({"python_version": python, "python_full_version": version})
            for version in versions
        ):
            kept.append(f"{requirement} \\{newline}{hashes}")
    return "".join(kept)


def gather_wheels(folder: Path, variant: str, python: str) -> None:
    """Download every locked wheel for Python `python`; pip checks the hashes."""
    for lock in locks(variant):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += [
            "--prefer-binary",
            "--no-build-isolation",
            "--python-version",
            python,
            "--dest",
            str(folder),
        ]
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write(for_hosts(lock.read_text(encoding="utf-8"), python))
            file.flush()
            subprocess.run([*command, "--requirement", file.name], check=True)


def prometheus(machine: str) -> tuple[str, str]:
    """URL and SHA-256 of Prometheus' archive, as the role knows them."""
    text = (REPO / "ansible/roles/prometheus/meta/argument_specs.yml").read_text(encoding="utf-8")
    options: dict[str, Any] = yaml.safe_load(text)["argument_specs"]["main"]["options"]
    version = options["prometheus_version"]["default"]
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[machine]
    name = f"prometheus-{version}.linux-{architecture}.tar.gz"
    base = f"https://github.com/prometheus/prometheus/releases/download/v{version}"
    return f"{base}/{name}", options["prometheus_checksums"]["default"][machine]


def fetch(url: str, sha256: str, folder: Path) -> None:
    """Download `url` into `folder` unless it is there.

    Raises:
        SystemExit: what came is not what was expected.
    """
    target = folder / url.rpartition("/")[2]
    if not target.is_file():
        partial = target.with_suffix(".partial")
        with urllib.request.urlopen(url, timeout=60) as answer, partial.open("wb") as out:  # noqa: S310
            while block := answer.read(1 << 20):
                out.write(block)
        partial.rename(target)
    found = hashlib.sha256(target.read_bytes()).hexdigest()
    if found != sha256:
        target.unlink()
        sys.exit(f"{url}: expected SHA-256 {sha256}, got {found}: the file was removed, try again")


def gather_python(folder: Path) -> None:
    """Download the interpreter that the role `python` brings along, in the layout uv asks a mirror for."""
    text = (REPO / "ansible/roles/python/meta/argument_specs.yml").read_text(encoding="utf-8")
    version = yaml.safe_load(text)["argument_specs"]["main"]["options"]["python_version"]["default"]
    listed = subprocess.run(
        ["uv", "python", "list", "--only-downloads", "--show-urls", "--all-platforms", version],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    wanted = f"cpython-{version}."
    for line in listed.splitlines():
        name, _, url = line.partition(" ")
        if name.startswith(wanted) and name.endswith("-linux-x86_64-gnu"):
            target = folder / "/".join(url.strip().split("/")[-2:])
            target.parent.mkdir(exist_ok=True)
            urllib.request.urlretrieve(url.strip(), target)  # noqa: S310
            return
    sys.exit(f"uv knows no Python {version} for linux-x86_64-gnu")


def main(argv: list[str] | None = None) -> int:
    """Gather what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=KINDS, action="append", help="gather this only; may be repeated")
    parser.add_argument("--vllm", choices=("cuda", "cpu"), default="cuda", help="vLLM's build")
    parser.add_argument("--python", default="3.11", help="Python of the hosts, for the wheels")
    parser.add_argument("--machine", choices=("x86_64", "aarch64"), default="x86_64")
    given = parser.parse_args(argv)
    for kind in given.only or KINDS:
        folder = given.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        match kind:
            case "wheels":
                gather_wheels(folder, given.vllm, given.python)
            case "archives":
                fetch(*prometheus(given.machine), folder)
            case "python":
                gather_python(folder)
        print(f"{folder}: {len(list(folder.rglob('*.*')))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
