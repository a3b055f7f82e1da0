"""Which systemd unit a process belongs to, read from its cgroup; the names are few by construction."""

import re
from pathlib import Path

UNKNOWN = "unknown"
"""The process is gone, or lives in a PID namespace that is not ours."""
NO_UNIT = "none"
"""The process is in no unit, as on a machine without systemd."""

_UNIT = re.compile(r"^.+\.(service|scope)$")
_RANDOM = (
    # systemd-run, and what else asks systemd for a transient unit
    re.compile(r"^(?P<stem>run)-[rpui0-9a-f-]+\.(?P<kind>service|scope)$"),
    # containers and sessions: always scopes, while a service with a number is one of an operator's several
    re.compile(r"^(?P<stem>[A-Za-z0-9_.@-]+?)-([0-9a-f]{12,}|[0-9]+)\.(?P<kind>scope)$"),
)


def unit_of_pid(pid: int, proc: Path = Path("/proc")) -> str:
    """The unit of process `pid`; never raises."""
    try:
        text = (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return UNKNOWN
    return unit_of_cgroup(text)


def unit_of_cgroup(text: str) -> str:
    """The unit in the contents of ``/proc/PID/cgroup``.

    Cgroup v1 and hybrid machines have systemd's hierarchy in the line ``N:name=systemd:PATH``, v2 machines
    have one line ``0::PATH`` (cgroups(7)). Below its unit a process may be in groups of the unit's own
    (delegation); above it are slices. A unit made for one container, session or run has a random name; such
    are shown by kind (``docker.scope``, ``session.scope``), so that the label stays bounded.
    """
    paths = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths[controllers] = path
    for controllers in ("name=systemd", ""):
        for part in paths.get(controllers, "").split("/"):
            name = part.removeprefix("_")
            if _UNIT.match(name):
                return _bounded(name)
    return NO_UNIT


def _bounded(name: str) -> str:
    match = next(filter(None, (pattern.match(name) for pattern in _RANDOM)), None)
    return f"{match['stem']}.{match['kind']}" if match else name
