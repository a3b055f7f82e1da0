"""Listening sockets: errors that say what to do, and the hand-over from systemd."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from daemons.runtime.errors import Fatal
from daemons.runtime.sockets import Address, inherited, listen_tcp, listen_unix, port_of, unix_socket_alive


def test_port_zero_takes_a_free_one() -> None:
    with listen_tcp(Address(port=0)) as sock:
        assert port_of(sock) > 0


def test_a_port_in_use_is_one_line_with_the_cure() -> None:
    with listen_tcp(Address(port=0)) as sock:
        port = port_of(sock)
        with pytest.raises(Fatal, match=rf"127.0.0.1:{port} is already in use: stop .*\(metrics\)"):
            listen_tcp(Address(port=port), key="metrics")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(Fatal, match="no such address"):
        listen_tcp(Address(host="192.0.2.1", port=0))
    with pytest.raises(Fatal, match="no address of this machine"):
        listen_tcp(Address(host="no such host", port=0))
    with pytest.raises(Fatal, match="no address of this machine"):
        listen_tcp(Address(host="gpu..example", port=0))


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    listen_unix(path).close()
    assert path.exists()
    assert not unix_socket_alive(path)
    with listen_unix(path):
        assert unix_socket_alive(path)
        assert path.stat().st_mode & 0o777 == 0o660
        with pytest.raises(Fatal, match="already in use"):
            listen_unix(path)


def test_a_unix_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="too long for a unix socket"):
        listen_unix(tmp_path / ("x" * 108))


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="does not exist"):
        listen_unix(tmp_path / "nowhere" / "api.sock")


_CHILD = """
import os, socket
os.environ["LISTEN_PID"] = str(os.getpid())
from daemons.runtime.sockets import inherited, port_of
found = inherited()
print({name: [port_of(s) for s in socks] for name, socks in found.items()}, "LISTEN_FDS" in os.environ)
print(inherited())
"""


def test_sockets_from_systemd_are_taken_once_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        command = f"exec {sys.executable} -c '{_CHILD}' 3<&{first.fileno()} 4<&{second.fileno()}"
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            pass_fds=(first.fileno(), second.fileno()),
            env=os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:metrics"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        expected = {"http": [first.getsockname()[1]], "metrics": [second.getsockname()[1]]}
    assert done.stdout.splitlines() == [f"{expected} False", "{}"]


def test_sockets_meant_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert inherited() == {}
