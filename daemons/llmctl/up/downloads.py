"""How far uv's downloads are, from what it prints when nobody watches."""

import re

from daemons.llmctl.up.progress import Progress

_STARTED = re.compile(r"^Downloading (\S+) \(([\d.]+)([KMG])iB\)$")
_ENDED = re.compile(r"^\s*Downloaded (\S+)$")
_PREPARED = re.compile(r"^Prepared \d+ packages? in ")
_MIB = {"K": 1 / 1024, "M": 1.0, "G": 1024.0}


class Downloads:
    """Follows the output of one `uv pip install`. Small files are not announced and not counted."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._announced: dict[str, float] = {}
        self._done = 0.0
        progress.phase("looking up packages")

    def hear(self, line: str) -> None:
        """One line of uv's output."""
        if started := _STARTED.match(line):
            if not self._announced:
                self._progress.phase("downloading")
            name, size, unit = started.groups()
            self._announced[name] = float(size) * _MIB[unit]
        elif ended := _ENDED.match(line):
            self._done += self._announced.get(ended[1], 0.0)
            self._progress.advance(self._done, sum(self._announced.values()))
        elif _PREPARED.match(line):
            self._progress.phase("installing")
