"""What this machine's own package clients are set up for. No address of a registry is written down here."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SUITE = "bookworm"


@dataclass(frozen=True, slots=True)
class AptSource:
    """One suite of one archive that apt on this machine knows."""

    site: str
    suite: str

    def line(self) -> str:
        """The ``sources.list`` line, main component only."""
        return f"deb {self.site} {self.suite} main"


def apt_sources() -> list[AptSource]:
    """The Debian suites of `SUITE` this machine installs from; empty where it is set up for none."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    pairs = sorted({tuple(line.split()) for line in listed.splitlines() if len(line.split()) == 2})
    return [AptSource(site, suite) for site, suite in pairs if suite.startswith(SUITE)]


def pip_hosts() -> list[str]:
    """``host:port`` of the package index and its file store, as pip itself names them."""
    code = "from pip._internal.models.index import PyPI; print(PyPI.netloc, PyPI.file_storage_domain)"
    named = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [f"{host}:443" for host in named.split()]


def pip_folders() -> list[Path]:
    """Local folders of wheels that pip on this machine looks into."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    paths = re.findall(r"find-links='([^']*)'", shown)
    return sorted({Path(part) for value in paths for part in value.split() if Path(part).is_dir()})


def allowed() -> list[str]:
    """Every ``host:port`` a test host may reach through the proxy."""
    hosts = set(pip_hosts())
    for source in apt_sources():
        split = urlsplit(source.site)
        hosts.add(f"{split.hostname}:{split.port or (443 if split.scheme == 'https' else 80)}")
    return sorted(hosts)
