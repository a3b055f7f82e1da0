"""Extracts the flags of ``vllm serve`` from unpacked source distributions into the engine's table.

Usage: ``python extract_vllm_flags.py HASHES FOLDER... > daemons/engine/command/flags.json``, where HASHES
has a line ``VERSION SHA256`` for each source distribution and FOLDER is one unpacked. Nothing of vLLM is
imported: its parsers are read as syntax trees, so that no release needs to be installed.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_SOURCES = ("engine/arg_utils.py", "entrypoints/**/cli_args.py", "entrypoints/cli/serve.py", "scripts.py")
_FRONTEND_CLASSES = ("BaseFrontendArgs", "FrontendArgs")


def flags_of(folder: Path) -> list[str]:
    """Every flag that ``vllm serve`` of the release in `folder` takes, without dashes, sorted."""
    found: set[str] = set()
    for source in _SOURCES:
        for path in (folder / "vllm").glob(source):
            found |= set(_flags(ast.parse(path.read_text(encoding="utf-8"))))
    return sorted(found)


def _flags(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            for argument in node.args:
                if isinstance(argument, ast.Constant) and str(argument.value).startswith("--"):
                    yield str(argument.value)[2:]
        elif isinstance(node, ast.ClassDef) and node.name in _FRONTEND_CLASSES:
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id.replace("_", "-")


def main(hashes: Path, *folders: Path) -> None:
    """Print the table as JSON, oldest release first."""
    sha256 = dict(line.split() for line in hashes.read_text(encoding="utf-8").splitlines())
    table = {}
    for folder in folders:
        found = re.search(r"^Version: (\S+)", (folder / "PKG-INFO").read_text(encoding="utf-8"), re.MULTILINE)
        if found is None:
            raise SystemExit(f"{folder} is no source distribution")
        version = found.group(1)
        table[version] = {
            "source": f"vllm-{version}.tar.gz",
            "sha256": sha256[version],
            "flags": flags_of(folder),
        }
    oldest_first = sorted(table, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    print(json.dumps({version: table[version] for version in oldest_first}, indent=0))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
