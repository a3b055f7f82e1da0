"""``llm-gateway --reload``: a reload that returns once the new worker serves, as ``systemctl reload`` must.

The command waits on a datagram socket in the unit's runtime folder, to which the master tells the outcome.
A master meets the commands of newer releases, so the few bytes stay as they are.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from daemons.runtime.errors import EXIT_CONFIG, Fatal

_SOCKET = "reload.sock"
_DONE, _REFUSED = b"done ", b"refused "


def ask(environment: Mapping[str, str], seconds: float) -> str:
    """Have the master of this unit reload and wait for the end of it; returns the status line.

    `environment` is that of ``ExecReload=``: ``$MAINPID`` and ``$RUNTIME_DIRECTORY``.

    Raises:
        Fatal: the reload was refused (exit status 78), took more than `seconds`, or there is no master.
    """
    try:
        pid, path = int(environment["MAINPID"]), Path(environment["RUNTIME_DIRECTORY"]) / _SOCKET
    except (KeyError, ValueError):
        raise Fatal("--reload is for ExecReload= of the unit: use systemctl reload llm-gateway") from None
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as waiting:
        waiting.bind(str(path))
        waiting.settimeout(seconds)
        try:
            os.kill(pid, signal.SIGHUP)
            told = waiting.recv(4096)
        except TimeoutError:
            raise Fatal(f"no new worker serves after {seconds:g} s: see journalctl -u llm-gateway") from None
        except ProcessLookupError:
            raise Fatal(f"no gateway runs as process {pid}") from None
        finally:
            path.unlink(missing_ok=True)
    if told.startswith(_REFUSED):
        raise Fatal(told.removeprefix(_REFUSED).decode(errors="replace"), EXIT_CONFIG)
    return told.removeprefix(_DONE).decode(errors="replace")


def tell(environment: Mapping[str, str], status: str, *, refused: bool = False) -> None:
    """In the master: tell who waits, if anybody does, that a reload has ended with `status`."""
    folder = environment.get("RUNTIME_DIRECTORY")
    if folder is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, contextlib.suppress(OSError):
        told.setblocking(False)
        told.sendto((_REFUSED if refused else _DONE) + status.encode()[:4000], f"{folder}/{_SOCKET}")
