"""Files that are made of others and committed: written, or compared with what they should hold."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path


def write_or_check(
    wanted: Iterable[tuple[Path, str]], argv: list[str] | None, *, prog: str, doc: str | None
) -> int:
    """Write the `wanted` files, or with ``--check`` name those that differ; returns 1 when any does."""
    parser = argparse.ArgumentParser(prog=prog, description=doc)
    parser.add_argument("--check", action="store_true", help="only say which files are not up to date")
    check = parser.parse_args(argv).check
    stale = [(path, text) for path, text in wanted if not path.is_file() or path.read_text() != text]
    for path, text in stale:
        if check:
            print(f"{path} is not up to date: make rules", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))
