"""How far downloads are: bars on a terminal, elsewhere lines and the status of the service manager."""

import sys
import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from daemons.runtime.notify import Notifier

_GIB = 1 << 30
_LINE_SECONDS = 10.0


class DownloadView:
    """Shows several downloads at once. Its methods may be called from any thread."""

    def __init__(self, notifier: Notifier, clock: Callable[[], float] = time.monotonic) -> None:
        self._notifier = notifier
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}
        self._told_at = -_LINE_SECONDS
        self._bars = _bars() if sys.stderr.isatty() else None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "DownloadView":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def report(self, repository: str, doing: str, done: int, total: int) -> None:
        """`repository` has `done` of `total` bytes."""
        with self._lock:
            if self._bars is not None:
                if repository not in self._tasks:
                    self._tasks[repository] = self._bars.add_task(repository, total=total, doing="")
                self._bars.update(self._tasks[repository], completed=done, total=total, doing=doing)
            self._states[repository] = (
                f"{repository} {done / _GIB:.1f} of {total / _GIB:.1f} GiB {doing}".rstrip()
            )
            if self._clock() - self._told_at < _LINE_SECONDS and done < total:
                return
            self._told_at = self._clock()
            self._notifier.status("downloading " + ", ".join(self._states.values()))
            if self._bars is None:
                print(self._states[repository], flush=True)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[doing]}"),
        console=Console(stderr=True),
    )
