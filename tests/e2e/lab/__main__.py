"""Test hosts by hand: ``python -m tests.e2e.lab FOLDER up|boot NAME N|exec NAME CMD...|remove NAME|down``."""

import subprocess
import sys
from pathlib import Path

from tests.e2e.lab.hosts import Host, Lab
from tests.e2e.lab.image import cache_folder


def _lab(work: Path) -> Lab:
    lab = Lab(work, cache_folder() / "mirror")
    for folder in sorted((work / "hosts").glob("*")):
        number = int((folder / "number").read_text())
        lab.hosts[folder.name] = Host(folder.name, number, folder)
    return lab


def main(argv: list[str]) -> int:
    """Carry out one verb."""
    work, verb, *rest = Path(argv[0]), *argv[1:]
    lab = _lab(work)
    match verb, rest:
        case "up", []:
            lab.up()
        case "down", []:
            lab.down()
        case "boot", [name, number]:
            host = lab.boot(name, int(number))
            (host.folder / "number").write_text(number)
            print(host.address)
        case "exec", [name, *command]:
            leader = lab.hosts[name].leader()
            return subprocess.call(["nsenter", "-t", str(leader), "-a", "-r", "-w", "--", *command])
        case "remove", [name]:
            lab.remove(lab.hosts[name])
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
