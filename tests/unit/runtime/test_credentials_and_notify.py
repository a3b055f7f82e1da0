"""Credentials, and what a child may not inherit."""

import os
import socket
from pathlib import Path

import pytest

from daemons.runtime.credentials import Credentials
from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.notify import SystemdNotifier, child_environment, watchdog_interval


def test_systemd_hands_credentials_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "handed").mkdir()
    (tmp_path / "handed" / "hf-token").write_text("hf_abc\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "handed"))
    token = Credentials(tmp_path).require("hf-token")
    assert token.get_secret_value() == "hf_abc"
    assert "hf_abc" not in repr(token)


def test_elsewhere_they_lie_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "empty").write_text("\n")
    credentials = Credentials(tmp_path)
    assert credentials.get("absent") is None
    assert credentials.get("empty") is None
    with pytest.raises(Fatal, match="missing or empty") as caught:
        credentials.require("empty")
    assert caught.value.exit_code == EXIT_CONFIG


def test_a_credential_that_is_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "credentials" / "odd").mkdir(parents=True)
    with pytest.raises(Fatal, match="cannot read the credential"):
        Credentials(tmp_path).get("odd")


def test_a_child_cannot_speak_for_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    private = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "CREDENTIALS_DIRECTORY"]
    for name in [*private, "KEPT"]:
        monkeypatch.setenv(name, "1")
    environment = child_environment()
    assert environment["KEPT"] == "1"
    assert not set(private) & set(environment)


def test_the_watchdog_interval_is_for_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_interval() == 30.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert watchdog_interval() is None


# sdnotify keeps its socket for as long as the process lives.
keeps_its_socket = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@keeps_its_socket
def test_a_manager_in_the_abstract_name_space_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        # The kernel picks a free name, with a null byte in front.
        manager.bind("")
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + manager.getsockname()[1:].decode())
        SystemdNotifier().ready("serving\ntwo models")
        assert manager.recv(200) == b"READY=1\nSTATUS=serving two models"


@keeps_its_socket
def test_a_manager_that_is_gone_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    SystemdNotifier().watchdog()
