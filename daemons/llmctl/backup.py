"""``llmctl backup`` and ``llmctl restore``: keys and ledger in one file, while the gateway runs."""

import argparse
import contextlib
import errno
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
import zlib
from contextlib import closing
from pathlib import Path, PurePosixPath

from daemons.gateway.settings import GatewaySettings
from daemons.gateway.tenants.key_files import KeyFiles
from daemons.gateway.tenants.keys import KeySettings
from daemons.gateway.tenants.ledger import book
from daemons.llmctl import gateway_files
from daemons.runtime import settings
from daemons.runtime.cli import counted
from daemons.runtime.errors import Fatal, describe_os_error
from daemons.runtime.version import VERSION

_KEYS, _LEDGER, _MANIFEST = "keys.d", "ledger.db", "manifest.json"
_BACKUP = """\
Writes the key files (hashes, no secrets) and the ledger into one .tar.gz, readable by its owner only.
The gateway may run meanwhile: the ledger is copied as it stands at one moment.

  llmctl backup /var/backups/llm-$(date +%F).tar.gz
"""
_RESTORE = """\
Puts the keys and the ledger of a backup in place; a running gateway takes both over by itself. Where
there are keys or a ledger with rows already, say --replace: keys that the backup does not have are
removed, and rows written since the backup are gone.
"""


def add_parsers(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``backup`` and ``restore``."""
    backup = verbs.add_parser(
        "backup",
        help="keys and ledger into one file, while the gateway runs",
        description=_BACKUP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    restore = verbs.add_parser("restore", help="put a backup in place", description=_RESTORE)
    restore.add_argument("--replace", action="store_true", help="in place of what is there")
    for parser, run in ((backup, run_backup), (restore, run_restore)):
        parser.add_argument("file", type=Path, metavar="FILE")
        gateway_files.add_config_option(parser)
        parser.set_defaults(run=run)


def run_backup(args: argparse.Namespace) -> int:
    """Write a backup.

    Raises:
        Fatal: something cannot be read, or the file cannot be written.
    """
    config = gateway_files.load(args)
    half = args.file.with_name(f".{args.file.name}.{os.getpid()}")
    try:
        with tempfile.TemporaryDirectory(prefix="llm-backup-", dir=args.file.absolute().parent) as folder:
            rows = _copy_ledger(config.ledger, Path(folder) / _LEDGER)
            keys = sorted(path for path in config.keys.glob("*.yaml") if path.name[0] != ".")
            _pack(half, keys, Path(folder) / _LEDGER if rows is not None else None)
        half.replace(args.file)
    except OSError as error:
        raise _not_written(error, args.file, config.keys) from None
    finally:
        with contextlib.suppress(OSError):
            half.unlink()
    print(f"{args.file}: {counted(len(keys), 'key')}, {counted(rows or 0, 'request')}")
    return 0


def _not_written(error: OSError, file: Path, keys: Path) -> Fatal:
    """Names the key that cannot be read, or else the folder of the backup, never a temporary file in it."""
    named = Path(str(error.filename or file))
    if keys in {named, named.parent}:
        return Fatal(describe_os_error(error, "read"))
    error.filename = str(file.absolute().parent)
    return Fatal(describe_os_error(error, f"write the backup {file.name} in"))


def _copy_ledger(source: Path, target: Path) -> int | None:
    """Copy the ledger as it stands at one moment; its rows, None where there is none yet.

    Raises:
        OSError: the disk of `target` is full.
        Fatal: the ledger cannot be read.
    """
    if not source.exists():
        return None
    try:
        with closing(book.connect(source, readonly=True)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            rows: int = copy.execute("SELECT count(*) FROM requests").fetchone()[0]
            return rows
    except sqlite3.Error as error:
        # `source` is only read: it is the copy that found no room.
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, str(error), str(target)) from None
        raise Fatal(f"the ledger {source} cannot be copied: {error}") from None


def _pack(target: Path, keys: list[Path], ledger: Path | None) -> None:
    manifest = {"format": 1, "version": VERSION, "made": int(time.time()), "keys": len(keys)}
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        data = json.dumps(manifest).encode()
        entry = tarfile.TarInfo(_MANIFEST)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
        for path in keys:
            archive.add(path, f"{_KEYS}/{path.name}", recursive=False)
        if ledger is not None:
            archive.add(ledger, _LEDGER)
        file.flush()


def run_restore(args: argparse.Namespace) -> int:
    """Put a backup in place.

    Raises:
        Fatal: it is none that this release can use, or something is there already, and nothing was changed;
            or what is here cannot be written.
    """
    config = gateway_files.load(args)
    with tempfile.TemporaryDirectory(prefix="llm-restore-") as name:
        folder = Path(name)
        _unpack(args.file, folder)
        keys = [settings.load(path, KeySettings) for path in sorted((folder / _KEYS).glob("*.yaml"))]
        _check_ledger(args.file, folder / _LEDGER)
        if not args.replace:
            _refuse_to_replace(config)
        rows = _restore_ledger(folder / _LEDGER, config.ledger)
        _restore_keys(config.keys, keys)
    print(f"in place: {counted(len(keys), 'key')}, {counted(rows, 'request')}")
    return 0


def _unpack(source: Path, folder: Path) -> None:
    """Take the members that a backup has, and nothing else, out of `source`."""
    (folder / _KEYS).mkdir()
    try:
        with tarfile.open(source, "r:gz") as archive:
            members = [member for member in archive if member.isfile()]
            if not any(member.name == _MANIFEST for member in members):
                raise Fatal(f"{source} is no backup of llmctl")
            for member in members:
                path = PurePosixPath(member.name)
                content = archive.extractfile(member)
                is_key = path.parent.as_posix() == _KEYS and path.suffix == ".yaml"
                if content is not None and (is_key or member.name == _LEDGER):
                    with content, (folder / path).open("xb") as out:
                        shutil.copyfileobj(content, out)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise Fatal(f"{source} is no backup of llmctl: {error}") from None
    except OSError as error:
        error.filename = error.filename or str(source)
        raise Fatal(describe_os_error(error, "read")) from None


def _check_ledger(source: Path, ledger: Path) -> None:
    if ledger.exists():
        try:
            with closing(book.connect(ledger, readonly=True)) as connection:
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
        except sqlite3.Error as error:
            raise Fatal(f"the ledger in {source} cannot be used: {error}") from None


def _refuse_to_replace(config: GatewaySettings) -> None:
    if config.keys.exists() and any(config.keys.glob("*.yaml")):
        raise Fatal(f"there are keys in {config.keys} already: --replace puts the backup in their place")
    if config.ledger.exists() and any(row.requests for row in book.usage(config.ledger, by=())):
        raise Fatal(f"the ledger {config.ledger} has rows already: --replace puts the backup in its place")


def _restore_keys(folder: Path, keys: list[KeySettings]) -> None:
    folder.mkdir(exist_ok=True)
    files = KeyFiles(folder)
    for key in keys:
        files.write(folder / f"{key.name}.yaml", key)
    kept = {f"{key.name}.yaml" for key in keys}
    for path in folder.glob("*.yaml"):
        if path.name not in kept:
            files.remove(path)


def _restore_ledger(source: Path, target: Path) -> int:
    """Copy page by page into the ledger in place, which a running gateway notices; its rows."""
    if not source.exists():
        return 0
    try:
        if not target.exists():
            target.touch(0o600)
            # Run by root, the file must be the gateway's, as its folder is.
            with contextlib.suppress(PermissionError):
                os.chown(target, target.parent.stat().st_uid, target.parent.stat().st_gid)
        with closing(sqlite3.connect(source)) as backup, closing(book.connect(target)) as live:
            backup.backup(live)
            rows: int = live.execute("SELECT count(*) FROM requests").fetchone()[0]
            return rows
    except sqlite3.Error as error:
        raise Fatal(f"the ledger {target} cannot be written: {error}") from None
    except OSError as error:
        raise Fatal(describe_os_error(error, "write the ledger")) from None
