"""What vLLM's wheels ask of a machine."""

import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemons.runtime.errors import EXIT_CONFIG, Fatal

VLLM_PYTHON = (3, 11)
"""The CPython that the locks are made for."""

_GLIBC = (2, 28)
"""manylinux_2_28, the tag of vLLM's wheels (PEP 600)."""


@dataclass(frozen=True, slots=True)
class Host:
    """A machine, as far as vLLM's wheels care.

    Attributes:
        system: ``platform.system()``.
        machine: ``platform.machine()``.
        libc: name and version; the name is empty where it is not glibc.
        cpu_flags: of /proc/cpuinfo; empty when unknown.
        python: the running interpreter, major and minor.
        executable: its path.
        has_lscpu: whether ``lscpu`` is there, which vLLM asks for the cores of a CPU.
        has_python_headers: whether ``Python.h`` is there, which Triton compiles against on a GPU.
    """

    system: str
    machine: str
    libc: tuple[str, str]
    cpu_flags: frozenset[str]
    python: tuple[int, int]
    executable: str
    has_lscpu: bool
    has_python_headers: bool

    @classmethod
    def detect(cls) -> "Host":
        """The machine and the interpreter that run this."""
        return cls(
            system=platform.system(),
            machine=platform.machine(),
            libc=platform.libc_ver(),
            cpu_flags=_cpu_flags(Path("/proc/cpuinfo")),
            python=sys.version_info[:2],
            executable=sys.executable,
            has_lscpu=shutil.which("lscpu") is not None,
            has_python_headers=(Path(sysconfig.get_path("include")) / "Python.h").exists(),
        )


def check(host: Host, *, on_cpu: bool) -> None:
    """See that the wheels can run on `host`.

    Raises:
        Fatal: they cannot; with exit status 78, as no retry helps.
    """
    cure = "use ENGINE=simulator here, or another machine"
    if (host.system, host.machine) != ("Linux", "x86_64"):
        raise Fatal(f"vLLM runs on Linux x86_64, this is {host.system} {host.machine}: {cure}", EXIT_CONFIG)
    name, version = host.libc
    if name != "glibc" or _numbers(version) < _GLIBC:
        has = f"{name} {version}" if name else "another C library"
        raise Fatal(f"vLLM needs glibc 2.28 or newer, this system has {has}: {cure}", EXIT_CONFIG)
    if on_cpu and host.cpu_flags and "avx2" not in host.cpu_flags:
        raise Fatal(f"vLLM on CPU needs a processor with AVX2, which this one lacks: {cure}", EXIT_CONFIG)
    if on_cpu and not host.has_lscpu:
        raise Fatal("vLLM on CPU needs lscpu, which is not here: apt-get install util-linux", EXIT_CONFIG)


def interpreter_options(host: Host, *, needs_headers: bool) -> Sequence[str]:
    """uv's options for the interpreter: the running one where it fits, else any 3.11 found or fetched."""
    if host.python == VLLM_PYTHON and (host.has_python_headers or not needs_headers):
        return ("--python", host.executable)
    wanted = ("--python", ".".join(map(str, VLLM_PYTHON)))
    return ("--managed-python", *wanted) if needs_headers else wanted


def check_space(folder: Path, needed_gib: float) -> None:
    """See that `needed_gib` GiB are free where `folder` is.

    Raises:
        Fatal: there is less.
    """
    free = shutil.disk_usage(folder).free / 2**30
    if free < needed_gib:
        raise Fatal(f"{folder} has {free:.1f} GiB free, {needed_gib:g} GiB are needed: free some space there")


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    try:
        match = re.search(r"^flags\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(match[1].split()) if match else frozenset()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
