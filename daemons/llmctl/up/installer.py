"""Virtual environments and installs from hash locks, by uv under pip's settings."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from daemons.llmctl.up.command import Run, run_program
from daemons.llmctl.up.downloads import Downloads
from daemons.llmctl.up.failures import explain, is_not_offered
from daemons.llmctl.up.pip_settings import to_uv, with_extra_index
from daemons.llmctl.up.progress import Progress
from daemons.runtime.errors import Fatal

# --no-build: every release of the locks has a wheel, and a source build would run foreign code.
_INSTALL = ("pip", "install", "--no-deps", "--require-hashes", "--no-build", "--no-progress", "--color=never")


class Installer:
    """uv in an environment that carries pip's settings; settings made for uv itself win.

    Args:
        uv: the program.
        ambient: the environment of this process.
        run: the seam to other programs.
    """

    def __init__(self, uv: str, ambient: Mapping[str, str], run: Run = run_program) -> None:
        self._uv = uv
        self._ambient = ambient
        self._run = run

    @cached_property
    def _environment(self) -> dict[str, str]:
        listing: list[str] = []
        pip = (sys.executable, "-m", "pip", "config", "list")
        status = self._run(pip, environment=self._ambient, on_line=listing.append)
        settings = {} if status else to_uv("\n".join(listing))
        # Any index may serve any release, as with pip: the hashes of the lock decide what is installed.
        return {"UV_INDEX_STRATEGY": "unsafe-best-match", **settings, **self._ambient}

    def run_script(self, python: Path, script: Path, *arguments: str) -> None:
        """Run `script` in an environment that was installed, apart from the folder it lies in.

        Raises:
            Fatal: it failed; with its last words.
        """
        # Bytecode is written whatever this process was told: it makes every later start faster.
        environment = {**self._ambient, "PYTHONDONTWRITEBYTECODE": ""}
        said = self._complaints((str(python), "-P", str(script), *arguments), environment)
        if said:
            raise Fatal(explain(said, f"run {script.name}", speaker="it"))

    def create_environment(self, root: Path, interpreter: Sequence[str]) -> None:
        """A fresh virtual environment at `root`, in place of whatever is there.

        Args:
            interpreter: uv's options for it.

        Raises:
            Fatal: uv failed, or the interpreter is not here and cannot be fetched.
        """
        argv = [self._uv, "venv", "--clear", "--no-project", "--color=never", *interpreter, str(root)]
        said = self._complaints(argv, self._environment)
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
        argv = [self._uv, *_INSTALL, *target, "--requirements", str(lock)]
        said = self._complaints(argv, self._environment, Downloads(progress).hear)
        if fallback_index and is_not_offered(said):
            environment = with_extra_index(self._environment, fallback_index)
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

        status = self._run(argv, environment=environment, on_line=hear)
        if status < 0:
            said.append(f"killed by {signal.Signals(-status).name}")
        return (said or [f"exit status {status}"]) if status else []


def find_installer() -> Installer:
    """The uv beside this interpreter, else the one on PATH.

    Raises:
        Fatal: there is none.
    """
    beside = str(Path(sys.executable).parent)
    uv = shutil.which("uv", path=os.pathsep.join((beside, os.environ.get("PATH", os.defpath))))
    if uv is None:
        raise Fatal("uv is not installed: run `make setup`")
    return Installer(uv, os.environ)
