"""Virtual environments and installs from hash locks, by uv under pip's settings."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemons.llmctl.up.command import Run, run_program
from daemons.llmctl.up.downloads import Downloads
from daemons.llmctl.up.failures import explain, is_not_offered
from daemons.llmctl.up.pip_settings import to_uv, with_extra_index
from daemons.llmctl.up.progress import Progress
from daemons.runtime.errors import Fatal

# --no-build: every release of the locks has a wheel, and a source build would run foreign code.
_INSTALL = ("pip", "install", "--no-deps", "--require-hashes", "--no-build", "--no-progress", "--color=never")


@dataclass(frozen=True, slots=True)
class Installer:
    """uv in an environment that carries pip's settings.

    Attributes:
        uv: the program.
        environment: what it runs with.
        run: the seam to other programs.
    """

    uv: str
    environment: Mapping[str, str]
    run: Run

    def create_environment(self, root: Path, interpreter: Sequence[str]) -> None:
        """A fresh virtual environment at `root`, in place of whatever is there.

        Args:
            interpreter: uv's options for it.

        Raises:
            Fatal: uv failed, or the interpreter is not here and cannot be fetched.
        """
        argv = [self.uv, "venv", "--clear", "--no-project", "--color=never", *interpreter, str(root)]
        said = self._complaints(argv, self.environment)
        if said:
            raise Fatal(explain(said, f"create the virtual environment {root}"))

    def install(
        self,
        lock: Path,
        target: Sequence[str],
        progress: Progress,
        *,
        what: str,
        fallback_index: str | None = None,
    ) -> None:
        """Put what `lock` names into `target`.

        Args:
            target: uv's options for the place.
            what: the thing, for messages.
            fallback_index: asked as well when the configured indexes lack a release of the lock.

        Raises:
            Fatal: uv failed; says why, what to do, and what uv said last.
        """
        argv = [self.uv, *_INSTALL, *target, "--requirements", str(lock)]
        said = self._complaints(argv, self.environment, Downloads(progress).hear)
        if fallback_index and is_not_offered(said):
            environment = with_extra_index(self.environment, fallback_index)
            said = self._complaints(argv, environment, Downloads(progress).hear)
        if said:
            raise Fatal(explain(said, f"install {what}"))

    def _complaints(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        listener: Callable[[str], None] = lambda _: None,
    ) -> list[str]:
        """What a uv that failed said; nothing when it succeeded."""
        said: list[str] = []

        def hear(line: str) -> None:
            said.append(line)
            listener(line)

        status = self.run(argv, environment=environment, on_line=hear)
        return [*said, f"exit status {status}"] if status else []


def find_installer(run: Run = run_program) -> Installer:
    """The uv beside this interpreter, else the one on PATH, with pip's settings.

    Settings made for uv itself win over pip's.

    Raises:
        Fatal: there is no uv.
    """
    beside = str(Path(sys.executable).parent)
    uv = shutil.which("uv", path=os.pathsep.join((beside, os.environ.get("PATH", os.defpath))))
    if uv is None:
        raise Fatal("uv is not installed: run `make setup`")
    listing: list[str] = []
    pip = [sys.executable, "-m", "pip", "config", "list"]
    status = run(pip, environment=os.environ, on_line=listing.append)
    settings = {} if status else to_uv("\n".join(listing))
    # Any index may serve any release, as with pip: the hashes of the lock decide what is installed.
    return Installer(uv, {"UV_INDEX_STRATEGY": "unsafe-best-match", **settings, **os.environ}, run)
