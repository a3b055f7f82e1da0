"""Ports for what does not say which one it took."""

import contextlib
import random
import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has.

    It is below those that the kernel gives away (ip(7)): another connection could get one of these first.
    """
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 - no secret
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
