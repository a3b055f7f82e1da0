"""The seam to the host: commands, files below a root, metrics pages, JSON over HTTP and unix sockets."""

import asyncio
import http.client
import json
import os
import shutil
import socket
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from daemons.llmctl.top.sources import Addresses, Pages, fetch

_SECONDS = 5.0
_ABSENT = 127


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended; status 127 where there is no such program, or it does not return."""

    status: int
    output: str


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a file system."""

    total: int
    free: int


class Machine(Protocol):
    """What `status` and `doctor` may ask. Nothing of it raises: what does not answer is None or empty."""

    @property
    def root(self) -> Path:
        """Where the host's files begin."""

    def run(self, *command: str) -> Ran:
        """Run a command that changes nothing."""

    def pages(self, addresses: Addresses) -> Pages | None:
        """Metrics pages."""

    def json(self, url: str, unix: Path | None = None) -> Any:
        """The JSON at `url`, by a unix socket where one is given; None without an answer."""

    def space(self, folder: Path) -> Space | None:
        """The file system that holds `folder`, or the nearest folder above it."""


class ThisMachine:
    """`Machine` where this process runs."""

    root = Path("/")

    def run(self, *command: str) -> Ran:
        """Run a command for at most five seconds."""
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired):
            return Ran(_ABSENT, "")
        return Ran(done.returncode, done.stdout + done.stderr)

    def pages(self, addresses: Addresses) -> Pages | None:
        """Metrics pages, all at once."""

        async def ask() -> Pages:
            async with aiohttp.ClientSession() as session:
                return await fetch(session, addresses)

        return asyncio.run(ask())

    def json(self, url: str, unix: Path | None = None) -> Any:
        """The JSON at `url`."""
        try:
            if unix is None:
                with urllib.request.urlopen(url, timeout=_SECONDS) as answer:  # noqa: S310 - our own http URL
                    return json.load(answer)
            connection = _UnixConnection(unix)
            try:
                connection.request("GET", url)
                return json.load(connection.getresponse())
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException):
            return None

    def space(self, folder: Path) -> Space | None:
        """The file system that holds `folder`."""
        while not folder.exists():
            folder = folder.parent
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            return None
        return Space(usage.total, usage.free)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(str(self._path))
