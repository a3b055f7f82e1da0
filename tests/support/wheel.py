"""The release's wheel, built as ``make wheel`` builds it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REPO = Path(__file__).parents[2]


def build(folder: Path, **environment: str) -> tuple[Path, str]:
    """Build the wheel into `folder`; the wheel, and what the build said."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(
        command,
        cwd=REPO,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stderr


def cannot_compile() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "needs Python's headers: apt-get install python3-dev"
    return None if shutil.which("gcc") else "needs a C compiler: apt-get install gcc libc6-dev"
