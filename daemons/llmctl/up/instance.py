"""Which parts of the stack this checkout runs: one locked file a part, so that `stop` ends only its own."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from daemons.runtime.errors import Fatal

PARTS = ("engine", "gateway", "gpu-exporter")
_POLL_SEC = 0.05
_URL_FILE = "gateway.url"


@contextlib.contextmanager
def claim(run_dir: Path, part: str) -> Iterator[None]:
    """Hold `part` within the context; the kernel gives the lock back however the process ends.

    Raises:
        Fatal: another process of this checkout runs it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / part).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fatal(f"the {part} of this checkout is already running: `make stop` ends it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        file.truncate(0)


def holder(run_dir: Path, part: str) -> int | None:
    """The process that runs `part`, or None."""
    try:
        with (run_dir / part).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read()
                return int(text) if text.isdecimal() else None
    except FileNotFoundError:
        pass
    return None


def write_url(run_dir: Path, url: str) -> None:
    """Note where the gateway of this checkout listens."""
    (run_dir / _URL_FILE).write_text(url)


def read_url(run_dir: Path) -> str | None:
    """Where the gateway of this checkout listens, once it has been noted."""
    try:
        return (run_dir / _URL_FILE).read_text() or None
    except FileNotFoundError:
        return None


def stop(run_dir: Path, patience_sec: float) -> list[str]:
    """End what this checkout runs and wait until it is gone; returns the parts that ran.

    Raises:
        Fatal: something is still running after `patience_sec`.
    """
    running = {part: pid for part in PARTS if (pid := holder(run_dir, part)) is not None}
    for pid in set(running.values()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_sec
    for part, pid in running.items():
        while holder(run_dir, part) == pid:
            if time.monotonic() > deadline:
                raise Fatal(f"process {pid} ({part}) is still stopping after {patience_sec:.0f} s")
            time.sleep(_POLL_SEC)
    return list(running)
