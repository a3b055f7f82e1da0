"""The gateway as releases run it: what requests pass is compiled, and the wheel fits every host."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support import wheel

PROJECT = tomllib.loads((wheel.REPO / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
THEIR_TESTS = (
    "tests/unit/gateway/test_accept.py",
    "tests/unit/gateway/test_addresses.py",
    "tests/unit/gateway/test_admission.py",
    "tests/unit/gateway/test_http1.py",
    "tests/unit/gateway/test_keys.py",
    "tests/unit/gateway/test_ledger.py",
    "tests/unit/gateway/test_limiter.py",
    "tests/unit/gateway/test_limits_hand_over.py",
    "tests/unit/gateway/test_policy.py",
    "tests/unit/gateway/test_policy_parts.py",
    "tests/unit/gateway/test_sse.py",
    "tests/unit/gateway/test_stream.py",
    "tests/integration/gateway/test_bodies.py",
    "tests/integration/gateway/test_connections.py",
    "tests/integration/gateway/test_drain.py",
    "tests/integration/gateway/test_http.py",
    "tests/integration/gateway/test_limits.py",
    "tests/integration/gateway/test_memory.py",
    "tests/integration/gateway/test_places.py",
    "tests/integration/gateway/test_relay.py",
    "tests/integration/gateway/test_relay_freed.py",
)
GLIBC_OF_UBUNTU_2204 = 35
# Imports every module of the gateway; says where each lies, and which classes no compiled base can have.
LOOK = """
import importlib, json, pkgutil, sys, daemons.gateway as gateway
for found in pkgutil.walk_packages(gateway.__path__, "daemons.gateway."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
files = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("daemons.")}
compiled = {name for name, file in files.items() if file.endswith(".so")}
mixed = [
    f"{name}.{kind.__name__}"
    for name in files.keys() - compiled
    for kind in vars(sys.modules[name]).values()
    if isinstance(kind, type) and kind.__module__ == name and {b.__module__ for b in kind.__mro__} & compiled
]
print(json.dumps({"files": files, "mixed": mixed}))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, compiled."""
    if (reason := wheel.cannot_compile()) is not None:
        pytest.skip(reason)
    path, said = wheel.build(tmp_path_factory.mktemp("dist"))
    assert "not compiled" not in said, said
    return path


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(built)], check=True, timeout=120)
    return folder


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(folder)}


def _look(folder: Path) -> Mapping[str, dict[str, str]]:
    command = [sys.executable, "-c", LOOK]
    ran = subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=True, timeout=120
    )
    found: Mapping[str, dict[str, str]] = json.loads(ran.stdout)
    return found


def _suffixes(files: Mapping[str, str]) -> set[str]:
    modules = [source.removesuffix(".py").replace("/", ".") for source in SOURCES]
    return {Path(files[module]).suffix for module in modules}


def test_the_wheel_holds_both_forms_and_still_fits_everywhere(built: Path) -> None:
    assert built.name.endswith("-py3-none-any.whl")
    names = ZipFile(built).namelist()
    for source in SOURCES:
        assert source in names
        assert [name for name in names if name.startswith(f"{source.removesuffix('.py')}.cpython-")]
    others = [name for name in names if not name.startswith("daemons/")]
    assert all(".dist-info/" in name for name in others), "nothing beside the package"


def test_two_builds_of_one_source_are_the_same(built: Path, tmp_path: Path) -> None:
    again, _ = wheel.build(tmp_path)
    assert again.read_bytes() == built.read_bytes()


def test_the_oldest_supported_host_has_what_the_extensions_need(built: Path) -> None:
    with ZipFile(built) as archive:
        needed = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    assert needed
    versions = [int(minor) for code in needed for minor in re.findall(rb"GLIBC_2\.(\d+)", code)]
    assert versions
    assert max(versions) <= GLIBC_OF_UBUNTU_2204


def test_python_takes_the_compiled_modules_and_no_interpreted_class_builds_on_one(installed: Path) -> None:
    found = _look(installed)
    assert _suffixes(found["files"]) == {".so"}
    assert not found["mixed"], "list these modules in pyproject.toml, too"


def test_elsewhere_python_takes_the_sources(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed / "daemons", tmp_path / "daemons")
    for file in tmp_path.rglob("*.so"):
        file.rename(file.with_name(file.name.replace("cpython-3", "cpython-9")))
    assert _suffixes(_look(tmp_path)["files"]) == {".py"}


def test_without_a_compiler_the_wheel_holds_sources_and_the_build_says_so(tmp_path: Path) -> None:
    path, said = wheel.build(tmp_path, CC="/nowhere/cc")
    told, written = said.splitlines()
    assert told.startswith("the gateway is not compiled")
    assert "there is no C compiler /nowhere/cc" in told
    assert written == str(path)
    names = ZipFile(path).namelist()
    assert "daemons/gateway/relay/stream.py" in names
    assert not [name for name in names if name.endswith(".so")]


def test_the_tests_of_the_compiled_modules_pass_on_them(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed / "daemons", tmp_path / "daemons")
    shutil.copytree(wheel.REPO / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(wheel.REPO / "docs", tmp_path / "docs")  # the policy's table is held against its page
    shutil.copy(wheel.REPO / "pyproject.toml", tmp_path)
    assert _suffixes(_look(tmp_path)["files"]) == {".so"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *THEIR_TESTS]
    ran = subprocess.run(
        command,
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr
