"""Test hosts by hand: ``python -m tests.e2e.lab FOLDER up|boot NAME N|exec NAME CMD...|remove NAME|down``."""

import subprocess
import sys
from pathlib import Path

from tests.e2e.lab.hosts import Lab
from tests.e2e.lab.image import cache_folder


def main(argv: list[str]) -> int:
    """Carry out one verb."""
    work, verb, *rest = Path(argv[0]), *argv[1:]
    lab = Lab.found(work, cache_folder() / "mirror")
    match verb, rest:
        case "up", []:
            lab.up()
        case "down", []:
            lab.down()
        case "boot", [name, number]:
            print(lab.boot(name, int(number)).address)
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
