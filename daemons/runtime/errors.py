"""Failures that end a process with one understandable line instead of a traceback."""

import errno

EXIT_CONFIG = 78
"""``EX_CONFIG`` of sysexits.h: restarting cannot help until an operator changes something.

The units list it in ``RestartPreventExitStatus=``.
"""


class Fatal(Exception):
    """Ends the process. The message is one line for the operator: what is wrong and what to do.

    Attributes:
        exit_code: process exit status; ``EXIT_CONFIG`` where a restart is pointless.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


_OS_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space there",
    errno.EDQUOT: "the disk quota is used up: free some space there",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied: run as the right user, or correct the file's owner and mode",
    errno.EPERM: "permission denied: run as the right user, or correct the file's owner and mode",
    errno.EMFILE: "too many open files: raise LimitNOFILE",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ENOENT: "it does not exist",
}


def describe_os_error(error: OSError, doing: str) -> str:
    """One line for an ``OSError``: what was being done, to what, and what to do about it."""
    advice = _OS_ADVICE.get(error.errno or 0, error.strerror or type(error).__name__)
    where = f" {error.filename}" if error.filename else ""
    return f"cannot {doing}{where}: {advice}"
