"""Hatchling's build hook: puts the modules named in pyproject.toml, compiled by mypyc, beside their sources.

The wheel stays `py3-none-any`. An extension's file name carries interpreter and platform, and Python takes it
only where both are its own, the source everywhere else. What stands in the way of compiling is said, and the
wheel then holds sources only.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHARED = "daemons.compiled"
"""All code lies in one library, `daemons/compiled__mypyc.*.so`; each module's own only points there."""
GLIBC = 35
"""Ubuntu 22.04's glibc is 2.35. Asked for a newer one, a host's import fails instead of taking the source."""


class CompileHook(BuildHookInterface[Any]):
    """Compiles `modules` for a wheel, never for an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the results to the builder."""
        if version == "editable":
            return
        # Left to `finalize`: the builder reads the files after this has returned.
        self.built = tempfile.TemporaryDirectory(prefix="compiled-")
        lib = Path(self.built.name, "lib")
        if why := self._obstacle() or self._compile(lib):
            self.app.display_warning(f"the gateway is not compiled, it will need more CPU: {why}")
            return
        build_data["force_include"].update(
            {str(file): str(file.relative_to(lib)) for file in lib.rglob("*.so")}
        )

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        del build_data, artifact_path
        if version != "editable":
            self.built.cleanup()

    def _obstacle(self) -> str | None:
        compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
        if shutil.which(compiler) is None:
            return f"there is no C compiler {compiler} (apt-get install gcc libc6-dev)"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return "Python's headers are missing (apt-get install python3-dev)"
        missing = [name for name in ("mypyc", "setuptools") if importlib.util.find_spec(name) is None]
        return f"{missing[0]} is not installed (make wheel installs it)" if missing else None

    def _compile(self, lib: Path) -> str | None:
        """Compile into the folder `lib`; the reason where that failed."""
        command = [sys.executable, __file__, str(lib), *self.config["modules"]]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return (done.stderr.strip() or done.stdout.strip() or "mypyc failed").splitlines()[-1]
        wanted = max(map(newest_glibc, lib.rglob("*.so")))
        return f"built here it needs glibc 2.{wanted}, hosts have 2.{GLIBC}" if wanted > GLIBC else None


def newest_glibc(extension: Path) -> int:
    """The minor version of the glibc that a library asks for; 0 where it asks for none."""
    return max((int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", extension.read_bytes())), default=0)


def main(lib: str, *modules: str) -> None:
    """Compile `modules` of the working folder into the folder `lib`; what is wrong goes to standard error."""
    import setuptools  # noqa: PLC0415 - before mypyc, which looks whether it was imported
    from mypyc.build import mypycify  # noqa: PLC0415

    work = str(Path(lib).parent / "work")
    options = ["--config-file", "pyproject.toml", "--cache-dir", f"{work}/mypy"]
    extensions = mypycify(
        [*options, *modules], opt_level="3", debug_level="0", target_dir=f"{work}/c", group_name=SHARED
    )
    project = setuptools.Distribution({"name": SHARED, "ext_modules": extensions})
    build = project.get_command_obj("build_ext")
    build.build_lib, build.build_temp = lib, f"{work}/o"
    build.ensure_finalized()
    build.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
