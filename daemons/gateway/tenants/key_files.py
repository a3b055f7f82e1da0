"""Writing key files: whole, by atomic rename, readable by their group only."""

import contextlib
import datetime as dt
import os
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import yaml

from daemons.gateway.tenants.keys import KeySettings, SecretSettings
from daemons.runtime import settings
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error
from daemons.runtime.settings import ConfigError, Fault

_MODE = 0o640
_MANAGED = "# Written by Ansible"


def new_secret() -> str:
    """A key as clients present it: 256 random bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def hash_of(secret: str) -> str:
    """What a key file keeps of it. Random bits need no salt and no slow hash: nobody can guess them."""
    return f"sha256:{sha256(secret.encode()).hexdigest()}"


def live_secrets(key: KeySettings, now: dt.datetime) -> list[SecretSettings]:
    """The secrets that have not expired."""
    return [s for s in key.all_secrets() if s.expires is None or s.expires > now]


def rotated(key: KeySettings, secret: str, former_until: dt.datetime, now: dt.datetime) -> KeySettings:
    """`key` with a new secret; the latest of its former ones works on until a time."""
    live = live_secrets(key, now)
    kept: list[SecretSettings] = []
    if live and former_until > now:
        ends = min(former_until, live[0].expires or former_until)
        kept = [SecretSettings(hash=live[0].hash, expires=ends)]
    return key.model_copy(update={"secrets": [hash_of(secret), *kept]})


class KeyFiles:
    """The folder of key files, as an operator changes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> tuple[dict[str, tuple[Path, KeySettings]], Sequence[Fault]]:
        """Every key by name with its file, and the faults of the files that cannot be used.

        Raises:
            Fatal: the folder cannot be read.
        """
        try:
            paths = sorted(p for p in self._folder.iterdir() if p.suffix == ".yaml" and p.name[0] != ".")
        except OSError as error:
            raise Fatal(describe_os_error(error, "read the folder of keys"), EXIT_CONFIG) from None
        keys: dict[str, tuple[Path, KeySettings]] = {}
        faults: list[Fault] = []
        for path in paths:
            try:
                key = settings.load(path, KeySettings)
            except ConfigError as error:
                faults += error.faults
                continue
            if key.name in keys:
                taken = keys[key.name][0].name
                faults.append(Fault(path, "name", f"{key.name!r} is already the name in {taken}"))
            else:
                keys[key.name] = (path, key)
        return keys, faults

    def get(self, name: str) -> tuple[Path, KeySettings]:
        """A key and its file.

        Raises:
            Fatal: there is no such key.
        """
        keys, faults = self.read()
        if name in keys:
            return keys[name]
        broken = next((fault for fault in faults if fault.file.stem == name), None)
        if broken is not None:
            raise Fatal(str(broken), EXIT_CONFIG)
        known = f"known are {', '.join(keys)}" if keys else "there is none"
        raise Fatal(f"no key is named {name!r} in {self._folder}: {known}")

    def add(self, key: KeySettings) -> Path:
        """Write a new key; its file.

        Raises:
            Fatal: the name is taken, or the folder cannot be written.
        """
        path = self._folder / f"{key.name}.yaml"
        if key.name in self.read()[0] or path.exists():
            raise Fatal(f"a key named {key.name!r} exists already: rotate it, or remove it first")
        self.write(path, key)
        return path

    def write(self, path: Path, key: KeySettings) -> None:
        """Put `key` into `path` at once and whole.

        Raises:
            Fatal: it cannot be written.
        """
        content = key.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        content["secrets"] = [_plain(s) for s in key.secrets]
        text = yaml.safe_dump(content, sort_keys=False)
        # The gateway looks at .yaml files only, and never at hidden ones.
        half = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            there = path.exists()
            group = (path if there else self._folder).stat().st_gid
            # The next deployment goes on to find its files by that line.
            mark = f"{_first_line(path)}\n" if there and is_managed(path) else ""
            with half.open("x", encoding="utf-8") as file:
                os.fchmod(file.fileno(), _MODE)
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), -1, group)
                file.write(mark + text)
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise Fatal(describe_os_error(error, "write a key file")) from None

    def remove(self, path: Path) -> None:
        """Delete a key's file.

        Raises:
            Fatal: it cannot be deleted.
        """
        try:
            path.unlink()
        except OSError as error:
            raise Fatal(describe_os_error(error, "remove a key file")) from None


def is_managed(path: Path) -> bool:
    """Whether the next deployment writes this file anew."""
    return _first_line(path).startswith(_MANAGED)


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip("\n")


def _plain(secret: str | SecretSettings) -> object:
    if isinstance(secret, str):
        return secret
    return {"hash": secret.hash} | ({"expires": secret.expires.isoformat()} if secret.expires else {})
