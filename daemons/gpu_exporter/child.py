"""Child processes that write to a socket, started without stopping the event loop.

uvloop forks: copying this process' page tables stops the loop for 5 to 8 ms, which a scrape would see.
posix_spawn copies nothing and takes 1 ms; a pidfd (Linux 5.3) tells of the end.
"""

import asyncio
import contextlib
import os
import signal
import socket

from daemons.runtime.notify import child_environment


class Child:
    """A process and what it writes to its standard output.

    Attributes:
        output: its standard output.
        status: how it ended, as `os.waitstatus_to_exitcode` has it; None before.
    """

    def __init__(self, pid: int, output: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take charge of the child process `pid`.

        Raises:
            OSError: out of descriptors.
        """
        self.output = output
        self.status: int | None = None
        self._pid = pid
        self._writer = writer
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self._pid, os.WNOHANG)
        self.status = os.waitstatus_to_exitcode(status)
        self._ended.set()

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def close(self) -> None:
        """Read no more of what it writes."""
        self._writer.close()

    def signal(self, signum: signal.Signals) -> None:
        """Send it `signum`, unless it is gone."""
        if not self.gone:
            signal.pidfd_send_signal(self._pidfd, signum)

    async def ended(self, grace: float) -> bool:
        """Whether it ends within `grace` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._ended.wait()
        return self.gone


async def start(command: tuple[str, ...], *, quiet: bool = False) -> Child:
    """Start `command` with a socket as its standard output; its standard input is empty.

    Args:
        quiet: what it complains of is not shown.

    Raises:
        OSError: there is no such command, or the system is out of processes, memory or descriptors.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        output, writer = await asyncio.open_connection(sock=ours)
        try:
            return _watched(_spawn(command, theirs, quiet=quiet), output, writer)
        except OSError:
            writer.close()
            raise


def _spawn(command: tuple[str, ...], output: socket.socket, *, quiet: bool) -> int:
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
    ]
    if quiet:
        actions.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
    return os.posix_spawnp(
        command[0], command, child_environment(), file_actions=actions, setsigdef=[signal.SIGPIPE]
    )


def _watched(pid: int, output: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Child:
    try:
        return Child(pid, output, writer)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
