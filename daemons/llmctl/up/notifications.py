"""The receiving end of sd_notify(3): one datagram socket a service, read on the event loop."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

Message = Mapping[str, str]

_DATAGRAM_BYTES = 16_384


@contextlib.contextmanager
def receiving(path: Path, deliver: Callable[[Message], None]) -> Iterator[None]:
    """Listen at `path` within the context and hand each message to `deliver`."""
    path.unlink(missing_ok=True)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.setblocking(False)

        def on_readable() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    deliver(parse(sock.recv(_DATAGRAM_BYTES)))

        loop.add_reader(sock, on_readable)
        try:
            yield
        finally:
            loop.remove_reader(sock)
            path.unlink(missing_ok=True)


def parse(datagram: bytes) -> Message:
    """The assignments of one datagram; lines without ``=`` are skipped."""
    lines = datagram.decode(errors="replace").splitlines()
    return {key: value for key, separator, value in (line.partition("=") for line in lines) if separator}
