"""The sd_notify protocol, spoken by every daemon to systemd or to `llmctl up`."""

import os
import time
from typing import Protocol

import sdnotify


class Notifier(Protocol):
    """What a daemon tells its service manager. Never raises: a manager that is gone is no fault."""

    def ready(self, status: str) -> None:
        """The daemon serves."""

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""

    def stopping(self, status: str) -> None:
        """The daemon drains and ends."""

    def watchdog(self) -> None:
        """The daemon makes progress."""

    def extend_timeout(self, seconds: float) -> None:
        """The current start, stop or reload may take `seconds` more, counted from now."""


class SystemdNotifier:
    """`Notifier` over ``$NOTIFY_SOCKET``; silent where there is none."""

    def __init__(self) -> None:
        # Without an address sdnotify would leave a socket open that it never uses.
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None

    def _send(self, *lines: str) -> None:
        if self._notifier is not None:
            self._notifier.notify("\n".join(lines))

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        self._send(f"STATUS={_one_line(text)}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={_one_line(status)}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def watchdog_interval() -> float | None:
    """Seconds within which systemd expects the next ``WATCHDOG=1``; None when it expects none.

    ``WATCHDOG_PID`` guards against a value inherited by a child (sd_watchdog_enabled(3)).
    """
    try:
        usec = int(os.environ.get("WATCHDOG_USEC", ""))
        pid = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return usec / 1_000_000 if usec > 0 and pid == os.getpid() else None


def child_environment() -> dict[str, str]:
    """This process' environment without what belongs to it alone.

    A child that inherited ``NOTIFY_SOCKET`` or ``WATCHDOG_*`` could speak to systemd in its parent's name;
    one that inherited ``LISTEN_FDS`` could take its sockets.
    """
    private = (
        "NOTIFY_SOCKET",
        "WATCHDOG_",
        "LISTEN_",
        "CREDENTIALS_DIRECTORY",
        "JOURNAL_STREAM",
        "INVOCATION_ID",
    )
    return {k: v for k, v in os.environ.items() if not k.startswith(private)}
