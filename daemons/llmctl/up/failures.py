"""Why uv, or a program it installed, failed: one line with a cure, from what it printed."""

import re
from collections.abc import Sequence

from daemons.runtime.logs import redact

_NOT_OFFERED = re.compile(r"no version of |not found in the package registry|No solution found")
_NO_PYTHON = re.compile(r"python-build-standalone|No interpreter found|No download found")
_LONGEST = 400

_DISK_FULL = "the disk is full: free some space there"
_NOT_WRITABLE = "the folder cannot be written to: run as the owner of this checkout"
_BAD_HASH = "a download is not what the lock names: have the mirror corrected (it is not safe to go on)"
_NO_NETWORK = (
    "a package index is out of reach: connect this machine, or name a mirror with "
    "`pip config set global.index-url URL` (a folder of wheels: global.find-links)"
)
_LACKING = "the package index lacks a release of the lock: use another mirror, or pip's find-links"
_OLD_PYTHON = "CPython 3.11 is not here and cannot be fetched: install python3.11, or connect this machine"
_KILLED = "it was killed, which Linux does when memory runs out: free some memory"

_CURES: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"(os error|Errno) (28|122)\b|No space left|quota exceeded"), _DISK_FULL),
    (re.compile(r"(os error|Errno) (1|13|30)\b|Permission denied"), _NOT_WRITABLE),
    (re.compile(r"Hash mismatch"), _BAD_HASH),
    (_NO_PYTHON, _OLD_PYTHON),
    (re.compile(r"killed by SIGKILL"), _KILLED),
    (re.compile(r"Failed to fetch|Request failed|dns error|\(Connect\)|timed out"), _NO_NETWORK),
    (_NOT_OFFERED, _LACKING),
)


def is_not_offered(said: Sequence[str]) -> bool:
    """Whether uv failed because its indexes, though reached, do not have a release."""
    return _NOT_OFFERED.search("\n".join(said)) is not None


def explain(said: Sequence[str], doing: str, speaker: str = "uv") -> str:
    """What could not be done, the cure where it is known, and the program's last words, without secrets."""
    text = "\n".join(said)
    cure = next((f"{cure}; " for pattern, cure in _CURES if pattern.search(text)), "")
    return f"cannot {doing}: {cure}{speaker} says: {last_words(said)}"


def last_words(said: Sequence[str]) -> str:
    """The error, its nearest and its root cause: uv prints the chain of causes below ``error:``."""
    chain = re.findall(r"^\s*(?:error|cause): (.+)$", "\n".join(said), re.MULTILINE)
    spoken = [line.strip() for line in said if line.strip()]
    words = [*chain[:2], *chain[-1:]] or spoken[-1:] or ["nothing"]
    return redact("; ".join(dict.fromkeys(words)))[:_LONGEST]
