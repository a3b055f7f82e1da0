"""libnuma is taken from the system, else fetched once, else asked for in one line."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from daemons.llmctl.up.numa import ensure_libnuma
from daemons.runtime.errors import Fatal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    return tmp_path


class _Apt:
    def __init__(self, status: int) -> None:
        self.status, self.calls = status, 0

    def __call__(
        self, argv: Sequence[str], *, environment: Mapping[str, str], on_line: Callable[[str], None]
    ) -> int:
        self.calls += 1
        folder = Path(argv[-1]) / "usr" / "lib" / "x86_64-linux-gnu"
        folder.mkdir(parents=True)
        if self.status:
            on_line("E: Unable to locate package libnuma1")
        else:
            (folder / "libnuma.so.1").write_bytes(b"")
        return self.status


def _hook(root: Path) -> Path:
    return root / "lib" / "python3.11" / "site-packages" / "libnuma.pth"


def test_the_system_s_is_used(root: Path) -> None:
    apt = _Apt(0)
    ensure_libnuma(root, apt, lambda _: True)
    assert apt.calls == 0
    assert not _hook(root).exists()


def test_a_copy_is_fetched_once_and_loaded_by_its_path(root: Path) -> None:
    apt = _Apt(0)
    ensure_libnuma(root, apt, lambda _: False)
    ensure_libnuma(root, apt, lambda _: False)
    assert apt.calls == 1
    assert str(root / "libnuma" / "usr/lib/x86_64-linux-gnu/libnuma.so.1") in _hook(root).read_text()


def test_what_cannot_be_fetched_is_asked_for(root: Path) -> None:
    with pytest.raises(Fatal, match=r"Unable to locate package.*apt-get install libnuma1"):
        ensure_libnuma(root, _Apt(100), lambda _: False)
    assert not _hook(root).exists()
