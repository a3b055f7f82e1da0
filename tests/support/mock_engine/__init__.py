"""Builds and runs `mock_engine.c`: an OpenAI-compatible engine of known behaviour for tests and benches."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SOURCE = Path(__file__).with_name("mock_engine.c")


class CompilerMissingError(Exception):
    """There is no C compiler; the message says what to install."""


def build() -> Path:
    """The compiled engine, built once per version of its source in the temporary folder.

    Raises:
        CompilerMissingError: gcc is not installed.
    """
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"llm-mock-engine-{os.getuid()}"
    binary = folder / f"mock_engine-{digest}"
    if binary.exists():
        return binary
    if shutil.which("gcc") is None:
        raise CompilerMissingError("the mock engine needs a C compiler: install gcc and libc6-dev")
    folder.mkdir(mode=0o700, exist_ok=True)
    half = binary.with_suffix(f".{os.getpid()}")
    subprocess.run(
        ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", str(half), str(SOURCE)], check=True
    )
    half.rename(binary)
    return binary


class MockEngine:
    """A running mock engine on a free loopback port; a context manager.

    Args:
        first_us: microseconds from getting a slot to the first token.
        token_us: microseconds between tokens.
        tokens: tokens of an answer whose request names no limit.
        slots: requests served at a time; 0 for no limit.
        services: a file of service times in microseconds, used in turn instead of `first_us`.
        unlisted: it has no ``/v1/models``, and takes any name.
    """

    def __init__(
        self,
        *,
        first_us: int = 5_000,
        token_us: int = 10_000,
        tokens: int = 64,
        slots: int = 0,
        services: Path | None = None,
        unlisted: bool = False,
        port: int = 0,
    ) -> None:
        self._command = [str(build()), "--port", str(port), "--slots", str(slots), "--tokens", str(tokens)]
        self._command += ["--first-us", str(first_us), "--token-us", str(token_us)]
        if unlisted:
            self._command.append("--unlisted")
        if services is not None:
            self._command += ["--services", str(services)]
        self._process: subprocess.Popen[str] | None = None
        self.port = port

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running engine."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("listening "):
            raise RuntimeError(f"the mock engine did not start: {line!r}")
        self.port = int(line.split()[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End the engine at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def get(self, path: str) -> bytes:
        """The body of a GET."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as response:
            body: bytes = response.read()
        return body

    def stats(self) -> dict[str, Any]:
        """What the engine did: served, aborted, tokens, running, waiting, cpu_seconds, gaps_us, totals_us."""
        answer: dict[str, Any] = json.loads(self.get("/stats"))
        return answer
