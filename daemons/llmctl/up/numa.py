"""libnuma for vLLM on the CPU, without root: a bare Debian or Ubuntu lacks it, and no wheel brings it."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from daemons.llmctl.up.command import Run, run_program
from daemons.runtime.errors import EXIT_CONFIG, Fatal

_SONAME = "libnuma.so.1"
# apt verifies the package, and works in folders of its own where the system's lists are missing.
_FETCH = """
cd "$1" && mkdir -p lists/partial cache/archives/partial
own="-o Dir::State::Lists=$1/lists -o Dir::Cache=$1/cache"
apt-get -q download libnuma1 || { apt-get -q $own update && apt-get -q $own download libnuma1; }
dpkg-deb -x libnuma1_*.deb . && rm -rf libnuma1_*.deb lists cache
"""


def loads(soname: str) -> bool:
    """Whether the dynamic linker finds `soname`."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def ensure_libnuma(root: Path, run: Run = run_program, present: Callable[[str], bool] = loads) -> None:
    """See that vLLM's environment at `root` can load libnuma; or fetch a copy for it.

    A ``.pth`` file of the environment loads the copy by path when the interpreter starts; the linker
    then finds it by its name (dlopen(3)).

    Raises:
        Fatal: it is not there and cannot be fetched.
    """
    hook = root / "lib" / "python3.11" / "site-packages" / "libnuma.pth"
    if hook.exists() or present(_SONAME):
        return
    folder = root / "libnuma"
    folder.mkdir(exist_ok=True)
    said: list[str] = []
    try:
        status = run(["sh", "-c", _FETCH, "sh", str(folder)], environment=os.environ, on_line=said.append)
    except OSError as error:
        status, said = 1, [str(error)]
    library = next(folder.rglob(_SONAME), None)
    if status or library is None:
        detail = said[-1] if said else f"exit status {status}"
        raise Fatal(
            f"vLLM on CPU needs libnuma, which is not here and could not be fetched ({detail}): "
            "apt-get install libnuma1",
            EXIT_CONFIG,
        )
    hook.write_text(f"import ctypes; ctypes.CDLL({str(library)!r})\n")
