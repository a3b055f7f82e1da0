"""Downloads from the hub or a mirror of it (``HF_ENDPOINT``): resumed, checked, exactly one revision."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

# Plain HTTP with ranges: what every mirror speaks, and what can be resumed.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from huggingface_hub import HfApi, errors, hf_hub_download
from pydantic import SecretStr

from daemons.engine.models.store import (
    FileEntry,
    Manifest,
    Store,
    git_blob_sha1,
    sha256_of,
    write_manifest,
)
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

log = structlog.get_logger()

_SPARE_BYTES = 1 << 30
_TEXT = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken")
_LEGACY = (".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of the hub.

    Attributes:
        sha256: of files in LFS.
        blob: git's name for the others.
    """

    name: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub to download from.

    Attributes:
        endpoint: its address; None for the public one or ``$HF_ENDPOINT``.
        token: for gated models.
        first_delay: seconds before the first retry of an interrupted download; doubles.
        attempts: how often a file is tried; each resumes where the last one broke off.
    """

    endpoint: str | None = None
    token: SecretStr | None = None
    first_delay: float = 1.0
    attempts: int = 5

    def download(
        self, repository: str, revision: str | None, store: Store, on_file: Callable[[str, int, int], None]
    ) -> Manifest:
        """Have `repository` in `store`, complete and verified; what is there already is not fetched again.

        Args:
            repository: ``ORGANISATION/NAME``.
            revision: commit, tag or branch; the default branch when None.
            store: where models lie.
            on_file: told each file with the bytes that are done and that are to do in all.

        Raises:
            Fatal: one line that says what to do.
        """
        with _explained(repository, revision):
            commit, files = self._listing(repository, revision)
        folder = store.path(repository)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_space(folder, files)
            done, total = 0, sum(file.size for file in files)
            entries: dict[str, FileEntry] = {}
            for file in files:
                on_file(file.name, done, total)
                entries[file.name] = self._have(repository, commit, file, folder)
                done += file.size
            manifest = Manifest(repository, commit, revision or commit, entries)
            write_manifest(folder, manifest)
        except OSError as error:
            raise Fatal(describe_os_error(error, f"download {repository} to")) from None
        on_file("", total, total)
        return manifest

    def _listing(self, repository: str, revision: str | None) -> tuple[str, list[Remote]]:
        info = HfApi(endpoint=self.endpoint, token=self._secret()).model_info(
            repository, revision=revision, files_metadata=True
        )
        files = [
            Remote(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else None, item.blob_id)
            for item in info.siblings or ()
        ]
        return str(info.sha), needed(files)

    def _have(self, repository: str, commit: str, file: Remote, folder: Path) -> FileEntry:
        """Have one file, verified; a damaged one is fetched once more."""
        path = folder / file.name
        if path.is_file() and _is_intact(path, file):
            return FileEntry(path.stat().st_size, sha256_of(path))
        for _ in range(2):
            path.unlink(missing_ok=True)
            self._fetch(repository, commit, file, folder)
            if _is_intact(path, file):
                return FileEntry(path.stat().st_size, sha256_of(path))
            log.warning("a file arrived damaged", file=file.name)
        raise Fatal(
            f"{repository}: {file.name} arrives damaged again and again: check the mirror or the line"
        )

    def _fetch(self, repository: str, commit: str, file: Remote, folder: Path) -> None:
        delay = self.first_delay
        for attempt in range(1, self.attempts + 1):
            try:
                with _explained(repository, commit):
                    hf_hub_download(
                        repository,
                        file.name,
                        revision=commit,
                        local_dir=folder,
                        endpoint=self.endpoint,
                        token=self._secret(),
                    )
            except Unreachable:
                if attempt == self.attempts:
                    raise
                log.warning("the download was interrupted; going on", file=file.name, attempt=attempt)
                time.sleep(delay)
                delay *= 2
            else:
                return

    def _secret(self) -> str | bool:
        return self.token.get_secret_value() if self.token else False


class Unreachable(Fatal):
    """The hub cannot be reached, or the line broke."""


def needed(files: Sequence[Remote]) -> list[Remote]:
    """The files that serving needs: safetensors or else older weights, and the texts beside them."""
    top = [file for file in files if "/" not in file.name]
    weights = [
        file
        for file in top
        if file.name.endswith(".safetensors") and not file.name.startswith("consolidated")
    ]
    if not weights:
        weights = [file for file in top if file.name.endswith(_LEGACY)]
    return sorted([file for file in top if file.name.endswith(_TEXT)] + weights, key=lambda file: file.size)


def _is_intact(path: Path, file: Remote) -> bool:
    if file.sha256 is not None:
        return sha256_of(path) == file.sha256
    return file.blob is None or git_blob_sha1(path) == file.blob


def _check_space(folder: Path, files: Sequence[Remote]) -> None:
    there = sum((folder / file.name).stat().st_size for file in files if (folder / file.name).is_file())
    missing = sum(file.size for file in files) - there
    free = shutil.disk_usage(folder).free
    if missing > 0 and missing + _SPARE_BYTES > free:
        gib = 1 << 30
        raise Fatal(
            f"{folder}: the model needs {missing / gib:.1f} GiB more and {free / gib:.1f} GiB are free: "
            "free some space, or set models_dir to another disk"
        )


_ABSENT: tuple[tuple[type[Exception], str], ...] = (
    (
        errors.GatedRepoError,
        "{0} is gated: accept its licence on the hub, and put a token that may read it into hf-token",
    ),
    (
        errors.RepositoryNotFoundError,
        "there is no model {0} on the hub, or it is private and needs the credential hf-token",
    ),
    (errors.RevisionNotFoundError, "{0} has no revision {1}: correct the key revision"),
    (errors.HFValidationError, "{0!r} is no name of a model: expected ORGANISATION/NAME"),
)
# In this order: a gated model is, to the library, a kind of absent one.
_HTTP_CLIENTS = ("httpx", "httpcore", "requests", "urllib3")


@contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's exceptions into one line each."""
    try:
        yield
    except Exception as error:
        for kind, text in _ABSENT:
            if isinstance(error, kind):
                raise Fatal(text.format(repository, revision), EXIT_CONFIG) from None
        if _is_line_trouble(error):
            said = str(error).splitlines()[:1] or [type(error).__name__]
            raise Unreachable(f"the hub cannot be reached for {repository}: {said[0]}") from None
        raise


def _is_line_trouble(error: Exception) -> bool:
    if isinstance(
        error, errors.HfHubHTTPError | errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled
    ):
        return True
    if isinstance(error, OSError):
        # One with a file is about the disk.
        return error.filename is None
    return type(error).__module__.startswith(_HTTP_CLIENTS)
