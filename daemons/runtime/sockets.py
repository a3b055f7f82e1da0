"""Listening sockets: handed over by systemd, or bound here with errors an operator understands."""

import errno
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from daemons.runtime.errors import Fatal, describe_os_error
from daemons.runtime.settings import Settings

_FIRST_FD = 3
_UNIX_PATH_BYTES = 107


class Address(Settings):
    """A TCP address to listen on."""

    host: str = "127.0.0.1"
    """Address or name; ``::`` listens on IPv6 and IPv4."""
    port: int = Field(ge=0, le=65535)
    """Port; 0 takes a free one."""


def inherited() -> dict[str, list[socket.socket]]:
    """Sockets that systemd passed (``LISTEN_FDS``), by ``FileDescriptorName=`` (sd_listen_fds(3)).

    Takes them once: the variables are removed, so that no child believes they are its own.
    """
    count, pid = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if not count.isdecimal() or pid != str(os.getpid()):
        return {}
    found: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        fd = _FIRST_FD + index
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            continue
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        os.set_inheritable(fd, False)
        name = names[index] if index < len(names) and names[index] else "unknown"
        found.setdefault(name, []).append(sock)
    return found


def listen_tcp(address: Address, key: str = "listen", backlog: int = 4096) -> socket.socket:
    """Bind and listen; `key` is the configuration key named in errors.

    Raises:
        Fatal: the port is taken, or the address is not one of this machine's.
    """
    where = f"{address.host}:{address.port}"
    try:
        family, kind, proto, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise Fatal(f"{key}: {address.host!r} is no address of this machine ({error})") from None
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
        sock.bind(target)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise Fatal(_bind_advice(error, where, key)) from None
    sock.setblocking(False)
    return sock


def _bind_advice(error: OSError, where: str, key: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{where} is already in use: stop what listens there, or set another port ({key})"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: this machine has no such address: correct {key}"
    if error.errno == errno.EACCES:
        return f"{where}: ports below 1024 need privileges: set a higher port ({key})"
    return f"cannot listen on {where}: {error.strerror}"


def listen_unix(path: Path, mode: int = 0o660, backlog: int = 1024) -> socket.socket:
    """Bind and listen on a unix socket; a stale file left by a dead process is replaced.

    Raises:
        Fatal: the path is too long, another process listens there, or its folder cannot be written.
    """
    if len(os.fsencode(path)) > _UNIX_PATH_BYTES:
        raise Fatal(f"{path} is too long for a unix socket ({_UNIX_PATH_BYTES} bytes at most)")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if unix_socket_alive(path):
            raise Fatal(f"{path} is already in use: stop the process that listens there")
        path.unlink(missing_ok=True)
        sock.bind(os.fspath(path))
        path.chmod(mode)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise Fatal(describe_os_error(error, f"listen on {path}")) from None
    except Fatal:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def unix_socket_alive(path: Path) -> bool:
    """Whether a process accepts connections on the unix socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def port_of(sock: socket.socket) -> int:
    """The TCP port that `sock` is bound to."""
    port = sock.getsockname()[1]
    assert isinstance(port, int)  # noqa: S101 - AF_INET addresses are (host, port, ...)
    return port


def close_all(sockets: Iterable[socket.socket]) -> None:
    """Close each of `sockets`."""
    for sock in sockets:
        sock.close()
