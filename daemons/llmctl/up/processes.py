"""What Linux offers to start children as systemd would and to leave none behind."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Collection, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LISTEN_FDS_START = 3
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphans of our children become our children (prctl(2)), so that `kill_orphans` finds them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """In a child before exec: SIGTERM when the parent dies, so that even its SIGKILL ends the stack."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def place_listen_fds(fds: Sequence[int]) -> None:
    """In a child before exec: move `fds` to 3, 4, … where sd_listen_fds(3) expects them."""
    high = [os.dup(fd) for fd in fds]
    while any(fd < _LISTEN_FDS_START + len(fds) for fd in high):
        high = [os.dup(fd) for fd in high]
    for index, fd in enumerate(high):
        os.dup2(fd, _LISTEN_FDS_START + index)


def children_of(pid: int) -> list[int]:
    """The direct children of `pid`, of all its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def descendants_of(pid: int) -> list[int]:
    """All processes below `pid`, parents before their children."""
    found: list[int] = []
    for child in children_of(pid):
        found += [child, *descendants_of(child)]
    return found


def kill_tree(pid: int) -> None:
    """SIGKILL `pid` and everything below it."""
    for victim in [pid, *descendants_of(pid)]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(victim, signal.SIGKILL)


class MainProcesses:
    """The main processes of all services of a manager, so that none is taken for another's orphan.

    Attributes:
        lock: held while a process is born and noted, and while orphans are looked for.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.pids: set[int] = set()


def kill_orphans(keep: Collection[int]) -> None:
    """SIGKILL every child of this process that is not in `keep`."""
    for pid in children_of(os.getpid()):
        if pid not in keep:
            kill_tree(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
