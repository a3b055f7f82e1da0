"""What `llmctl up` shows: progress bars on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator

from rich import progress as bars
from rich.console import Console

from daemons.llmctl.up.progress import Progress


class Screen:
    """Shows steps one below the other; each ends with a tick, or is left standing when it fails."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextlib.contextmanager
    def step(self, title: str, end: str = "done") -> Iterator[Progress]:
        """Show `title` as under way within the context; `end` is what it is afterwards."""
        if not self.console.is_terminal:
            step = _PlainStep(self.console, title)
            yield step
            self.console.print(f"{title}: {end}", highlight=False)
            return
        with bars.Progress(
            bars.SpinnerColumn(finished_text="[green]✓"),
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=10),
            bars.TextColumn("{task.fields[phase]}", style="dim", markup=False),
            bars.TimeElapsedColumn(),
            console=self.console,
        ) as progress:
            bar = _BarStep(progress, progress.add_task(title, total=None, phase=""))
            yield bar
            bar.finish()

    def line(self, text: str, style: str = "") -> None:
        """One line of its own."""
        self.console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)


class _PlainStep:
    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title, self._shown = console, title, ""
        self._tenth = 0

    def phase(self, text: str) -> None:
        if text != self._shown:
            self._shown, self._tenth = text, 0
            self._console.print(f"{self._title}: {text}", highlight=False, soft_wrap=True, markup=False)

    def advance(self, done: float, total: float) -> None:
        tenth = int(10 * done / total) if total else 0
        if tenth > self._tenth:
            self._tenth = tenth
            self._console.print(f"{self._title}: {tenth * 10} %", highlight=False)


class _BarStep:
    def __init__(self, progress: bars.Progress, task: bars.TaskID) -> None:
        self._progress, self._task = progress, task

    def phase(self, text: str) -> None:
        self._progress.update(self._task, phase=text[: max(20, self._progress.console.width - 60)])

    def advance(self, done: float, total: float) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def finish(self) -> None:
        self._progress.update(self._task, completed=1, total=1, phase="")
