"""Running a program to its end while its output is read line by line."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol


class Run(Protocol):
    """The seam to other programs; tests put a script of answers here."""

    def __call__(
        self, argv: Sequence[str], *, environment: Mapping[str, str], on_line: Callable[[str], None]
    ) -> int:
        """Run `argv` to its end, give each line of its output to `on_line`, return the exit status.

        Raises:
            OSError: the program cannot be started.
        """


def run_program(
    argv: Sequence[str], *, environment: Mapping[str, str], on_line: Callable[[str], None]
) -> int:
    """`Run` for real programs. An exception while reading, Ctrl-C too, ends the program first."""
    with subprocess.Popen(
        argv,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                on_line(line.rstrip("\n"))
        except BaseException:
            with suppress(ProcessLookupError):
                process.terminate()
            raise
    return process.returncode
