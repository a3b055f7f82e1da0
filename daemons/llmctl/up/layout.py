"""The files of a local stack: everything under ``.llm/``, except sockets, which need a short path."""

import contextlib
import hashlib
import json
import os
import random
import secrets
import socket
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from daemons.gateway.tenants.key_files import hash_of
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

ENGINE = "local"
"""Name of the one engine of a local stack."""
KEY_NAME = "local"
"""Name of the key that a local stack comes with."""
ORIGINAL_KEY_NAME = "original-examples"
ORIGINAL_ALIAS = "llama-7b"
"""Model name of the examples that users of earlier releases have; answered to on this machine only."""
ORIGINAL_KEY = "dev-key-1"
"""Key of the same examples. It is public: preflight refuses it on a host."""

_LOOPBACK = ["127.0.0.0/8", "::1/128"]


@dataclass(frozen=True, slots=True)
class Model:
    """What the engine serves: a folder or hub name, and the name clients use."""

    source: str
    name: str


@dataclass(frozen=True, slots=True)
class Served:
    """What the engine of this checkout serves, for a gateway that is started on its own."""

    name: str
    title: str


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of a local stack, all on loopback; 0 for the gateway takes a free one."""

    gateway: int
    gateway_metrics: int = 9102
    engine_metrics: int = 9110
    gpu_exporter: int = 9101

    @classmethod
    def around(cls, port: int) -> "Ports":
        """The usual ports with the gateway at `port`; only free ones when `port` is 0."""
        return cls(port) if port else cls(0, *_free_ports(3))


def _free_ports(number: int) -> list[int]:
    """Ports that nobody has, from below those that the kernel gives to outgoing connections (ip(7)).

    They are known before the daemons start, and written into their settings, so that `llmctl top` finds them.
    """
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == number:
            return found
    raise Fatal("there are no free ports between 20000 and 32000 on 127.0.0.1")


class Layout:
    """Paths of the local stack of one checkout; nothing is there before `make`."""

    def __init__(self, state: Path) -> None:
        self.state = state.resolve()
        self.run = self.state / "run"
        self.logs = self.state / "logs"
        self.models = self.state / "models"
        self.cache = self.state / "cache"
        self.key_file = self.state / "key"
        self.keys = self.state / "keys.d"
        self.gateway_config = self.state / "gateway.yaml"
        self.exporter_config = self.state / "gpu-exporter.yaml"
        self._served_file = self.run / "served.json"
        self.engine_config = self.state / "engines" / f"{ENGINE}.yaml"
        self.sockets = _socket_folder(self.state)
        self.engine_run = self.sockets / ENGINE

    def make(self) -> bool:
        """Make the folders that are not there yet, private to this user.

        Returns:
            Whether the state was open to others, and is not any more.

        Raises:
            Fatal: a folder cannot be made, or the folder for sockets belongs to somebody else.
        """
        _make_private(self.sockets)
        folders = (self.run, self.logs, self.models, self.cache, self.engine_config.parent, self.engine_run)
        try:
            # First, because parents that `mkdir` makes by the way are open to others.
            for folder in (self.state, *folders, self.keys):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _close(self.state)
        except OSError as error:
            raise Fatal(describe_os_error(error, "make the folder")) from None

    def key(self) -> str:
        """The API key of this stack, made at the first start and kept in a file that only its owner reads."""
        if found := self._kept_key():
            return found
        key = f"sk-{secrets.token_urlsafe(32)}"
        write_private(self.key_file, f"{key}\n")
        return key

    def _kept_key(self) -> str:
        try:
            return self.key_file.read_text().strip()
        except FileNotFoundError:
            return ""

    def write_keys(self) -> bool:
        """The keys of a first start. Later ones leave them as the operator has them, disabled or limited.

        Returns:
            Whether the key of this stack had been removed, and is back: the stack needs it.
        """
        first = not self._kept_key()
        missing = not self._key_path(KEY_NAME).exists()
        if first or missing:
            self._write_key(KEY_NAME, self.key())
        if first:
            self._write_key(ORIGINAL_KEY_NAME, ORIGINAL_KEY)
        return missing and not first

    def _key_path(self, name: str) -> Path:
        return self.keys / f"{name}.yaml"

    def _write_key(self, name: str, secret: str) -> None:
        content = {"name": name, "secrets": [hash_of(secret)], "models": ["*"], "networks": _LOOPBACK}
        write_yaml(self._key_path(name), content)

    def note_served(self, served: Served) -> None:
        """Remember what the engine serves."""
        write_private(self._served_file, json.dumps(asdict(served)))

    def served(self) -> Served:
        """What the engine serves, or served last.

        Raises:
            Fatal: no engine of this checkout has been started yet.
        """
        try:
            return Served(**json.loads(self._served_file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            raise Fatal("no engine of this checkout has been started yet: `make vllm` first") from None

    def write_gateway(self, served: Served, ports: Ports) -> None:
        """The gateway's settings, beside those of the operator."""
        _put(
            self.gateway_config,
            {
                "listen": {"host": "127.0.0.1", "port": ports.gateway},
                "metrics": {"host": "127.0.0.1", "port": ports.gateway_metrics},
                "admin": str(self.sockets / "admin.sock"),
                "engines": [
                    {
                        "name": ENGINE,
                        "url": f"unix://{self.engine_run}/api.sock",
                        "models": [served.name, ORIGINAL_ALIAS],
                    }
                ],
            },
        )

    def write_engine(self, model: Model, ports: Ports, settings: dict[str, Any]) -> None:
        """The engine's settings: what every local engine has, and `settings`."""
        write_yaml(
            self.engine_config,
            {
                "model": model.source,
                "served_names": [model.name, ORIGINAL_ALIAS],
                "metrics": {"host": "127.0.0.1", "port": ports.engine_metrics},
                "runtime_dir": str(self.engine_run),
                "cache_dir": str(self.cache / "engines" / ENGINE),
                # The gateway ends first here: nobody is left to tell, and only streams that hang to drain.
                "stop": {"drain_seconds": 5, "announce_seconds": 0, "kill_seconds": 5},
                **settings,
            },
            "`make up` writes this file anew at every start: to keep settings of an engine, deploy it "
            "(docs/operations.md)",
        )

    def write_exporter(self, ports: Ports) -> None:
        """The GPU exporter's settings, beside those of the operator."""
        _put(self.exporter_config, {"listen": {"host": "127.0.0.1", "port": ports.gpu_exporter}})


def _socket_folder(state: Path) -> Path:
    """A folder with a short name that is the same at every start of this checkout."""
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:10]
    return Path(tempfile.gettempdir()) / f"llm-{os.getuid()}-{digest}"


def _close(folder: Path) -> bool:
    """Shut others out; whether they were in. A folder that is meant for all, as /tmp is, stays as it is."""
    mode = folder.stat().st_mode
    if not mode & 0o077 or mode & stat.S_ISVTX:
        return False
    folder.chmod(0o700)
    return True


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise Fatal(describe_os_error(error, "make the folder for sockets")) from None
    if status.st_uid != os.getuid() or folder.is_symlink() or status.st_mode & 0o077:
        raise Fatal(f"{folder} is not a private folder of this user: remove it, or set TMPDIR")


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a settings file; none where there is no file.

    Raises:
        Fatal: it is not readable YAML.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise Fatal(f"{path}: cannot be read ({reason})", EXIT_CONFIG) from None
    return content if isinstance(content, dict) else {}


def _put(path: Path, content: dict[str, Any]) -> None:
    """Set the keys of `content` in `path`; whatever else the operator has put there stays."""
    note = f"`make up` writes {', '.join(content)} anew at every start; other keys stay, comments do not"
    write_yaml(path, {**read_yaml(path), **content}, note)


def write_yaml(path: Path, content: dict[str, Any], note: str = "") -> None:
    """Replace `path` by `content`, under `note` as a comment, readable by its owner only."""
    comment = f"# {note}\n" if note else ""
    write_private(path, comment + yaml.safe_dump(content, sort_keys=False))


def write_private(path: Path, text: str) -> None:
    """Replace `path` atomically by `text`, mode 0600.

    Raises:
        Fatal: it cannot be written; the file is as it was.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise Fatal(describe_os_error(error, "write")) from None
