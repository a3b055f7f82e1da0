"""Running Ansible on this machine without touching it: templates and checks of roles, with given facts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.unit.deploy.units import REPO

ANSIBLE = REPO / "ansible"


def run(folder: Path, tasks: list[dict[str, Any]], inventory: dict[str, Any]) -> tuple[int, str]:
    """Run `tasks` on every host of `inventory` with the roles; returns the status and what was said."""
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
    (folder / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "all", "connection": "local", "gather_facts": False, "tasks": tasks}])
    )
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(folder / "hosts.yml")),
            str(folder / "play.yml"),
        ],
        cwd=ANSIBLE,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
