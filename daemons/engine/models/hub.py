"""Downloads from the hub or a mirror of it (``HF_ENDPOINT``): resumed, checked, exactly one revision."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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

    @property
    def is_text(self) -> bool:
        """Whether it is one of the texts beside the weights."""
        return self.name.endswith(_TEXT)


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
        self,
        repository: str,
        revision: str | None,
        store: Store,
        on_progress: Callable[[str, int, int], None],
    ) -> Manifest:
        """Have `repository` in `store`, complete and verified; what is there already is not fetched again.

        Another download of the same model, in whatever process, is waited for.

        Args:
            repository: ``ORGANISATION/NAME``.
            revision: commit, tag or branch; the default branch when None.
            store: where models lie.
            on_progress: told what is being done, and the bytes that are done and that are to do in all.

        Raises:
            Fatal: one line that says what to do.
        """
        commit, files = self.listing(repository, revision)
        folder = store.path(repository)
        done, total = 0, sum(file.size for file in files)
        try:
            with store.locked(
                repository, lambda: on_progress("waiting for another download of it", 0, total)
            ):
                folder.mkdir(parents=True, exist_ok=True)
                _check_space(folder, files)
                entries: dict[str, FileEntry] = {}
                for file in files:

                    def report(there: int, name: str = file.name, before: int = done) -> None:
                        on_progress(name, before + there, total)

                    entries[file.name] = self._have(repository, commit, file, folder, report)
                    done += file.size
                manifest = Manifest(repository, commit, revision or commit, entries)
                write_manifest(folder, manifest)
        except OSError as error:
            raise Fatal(describe_os_error(error, f"download {repository} to")) from None
        on_progress("", total, total)
        return manifest

    def listing(self, repository: str, revision: str | None) -> tuple[str, list[Remote]]:
        """The exact commit of `revision`, and the files of it that serving needs.

        Raises:
            Fatal: one line that says what to do.
        """
        with explained(repository, revision):
            info = HfApi(endpoint=self.endpoint, token=self.secret()).model_info(
                repository, revision=revision, files_metadata=True
            )
        files = [
            Remote(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else None, item.blob_id)
            for item in info.siblings or ()
        ]
        return str(info.sha), needed(files)

    def secret(self) -> str | bool:
        """The token as the library takes it; False keeps it from looking for one by itself."""
        return self.token.get_secret_value() if self.token else False

    def _have(
        self, repository: str, commit: str, file: Remote, folder: Path, report: Callable[[int], None]
    ) -> FileEntry:
        """Have one file, verified; a damaged one is fetched once more."""
        path = folder / file.name
        report(0)
        entry = _intact(path, file)
        for _ in range(2):
            if entry is not None:
                return entry
            path.unlink(missing_ok=True)
            self._fetch(repository, commit, file, folder, report)
            entry = _intact(path, file)
            if entry is None:
                log.warning("a file arrived damaged", file=file.name)
        if entry is None:
            raise Fatal(
                f"{repository}: {file.name} arrives damaged again and again: check the mirror or the line"
            )
        return entry

    def _fetch(
        self, repository: str, commit: str, file: Remote, folder: Path, report: Callable[[int], None]
    ) -> None:
        delay = self.first_delay
        for attempt in range(1, self.attempts + 1):
            try:
                with explained(repository, commit):
                    hf_hub_download(
                        repository,
                        file.name,
                        revision=commit,
                        local_dir=folder,
                        endpoint=self.endpoint,
                        token=self.secret(),
                        tqdm_class=_meter(report),
                    )
            except Unreachable:
                if attempt == self.attempts:
                    raise
                log.warning("the download was interrupted; going on", file=file.name, attempt=attempt)
                time.sleep(delay)
                delay *= 2
            else:
                return


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
    return sorted([file for file in top if file.is_text] + weights, key=lambda file: file.size)


def _intact(path: Path, file: Remote) -> FileEntry | None:
    """The entry of a file that is there as the hub has it; None when it is not. Every byte is read once."""
    if not path.is_file():
        return None
    digest = sha256_of(path)
    good = digest == file.sha256 if file.sha256 else file.blob in (None, git_blob_sha1(path))
    return FileEntry(path.stat().st_size, digest) if good else None


def _meter(report: Callable[[int], None]) -> Any:
    """What the library takes for a progress bar: it tells the bytes of a file to `report`."""

    class Meter:
        def __init__(self, *, initial: int = 0, **_: object) -> None:
            self._there = initial

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def update(self, more: float | None = 1) -> None:
            self._there += int(more or 0)
            report(self._there)

    return Meter


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
def explained(repository: str, revision: str | None) -> Iterator[None]:
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
