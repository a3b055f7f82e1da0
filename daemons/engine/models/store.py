"""Where downloaded models lie, and the manifest that makes each of them verifiable."""

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

MANIFEST = ".llm-manifest.json"
_CHUNK = 1 << 20


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a model: bytes and SHA-256 in hexadecimal."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """A model as it was downloaded; `revision` is the exact commit, `asked` what it was asked for by."""

    repository: str
    revision: str
    asked: str
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of models: ``ORGANISATION--NAME`` each."""

    folder: Path

    def path(self, repository: str) -> Path:
        """Where the model of `repository` lies or would lie."""
        return self.folder / repository.replace("/", "--")

    @contextlib.contextmanager
    def locked(self, repository: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Keep every other process from downloading `repository`; `on_wait` is called when one does already.

        Raises:
            OSError: the lock cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(repository)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def find(self, repository: str, revision: str | None) -> Path | None:
        """The complete model of `repository`; None when it is absent, unfinished or of another revision."""
        manifest = self.manifest(repository)
        if manifest is None or (revision is not None and revision not in (manifest.revision, manifest.asked)):
            return None
        return self.path(repository)

    def manifest(self, repository: str) -> Manifest | None:
        """The manifest of a model; None when there is none or it is damaged."""
        return read_manifest(self.path(repository))

    def models(self) -> list[Manifest]:
        """Every complete model, by name."""
        found = [read_manifest(path.parent) for path in sorted(self.folder.glob(f"*/{MANIFEST}"))]
        return [manifest for manifest in found if manifest is not None]

    def faults(self, manifest: Manifest) -> list[str]:
        """What is wrong with a model's files; every byte is read."""
        folder, faults = self.path(manifest.repository), []
        for name, entry in manifest.files.items():
            path = folder / name
            if not path.is_file():
                faults.append(f"{name} is missing")
            elif path.stat().st_size != entry.size:
                faults.append(f"{name} has {path.stat().st_size} bytes instead of {entry.size}")
            elif sha256_of(path) != entry.sha256:
                faults.append(f"{name} was changed: its SHA-256 differs")
        return faults

    def remove(self, repository: str) -> int:
        """Delete a model; returns the bytes that were freed.

        Raises:
            Fatal: it is not there, or cannot be deleted.
        """
        folder = self.path(repository)
        if not folder.is_dir():
            raise Fatal(f"{repository} is not in {self.folder}", EXIT_CONFIG)
        try:
            freed = size_below(folder)
            # Without its manifest the model is incomplete: no engine starts on a half-deleted one.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        except OSError as error:
            raise Fatal(describe_os_error(error, "remove the model")) from None
        return freed


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`; None when it is absent or damaged."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`, whole or not at all."""
    part = folder / f"{MANIFEST}.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    part.replace(folder / MANIFEST)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def git_blob_sha1(path: Path) -> str:
    """The name git gives to a file's content, with which the hub names files that are not in LFS."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def size_below(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
