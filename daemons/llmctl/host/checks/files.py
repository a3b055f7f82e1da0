"""Troubles of settings, credentials, models, certificates and releases."""

import stat
from collections.abc import Iterator
from pathlib import Path

from daemons.engine.config import EngineSettings, is_folder
from daemons.llmctl.config import files_below
from daemons.llmctl.host.checks.finding import Finding
from daemons.llmctl.host.machine import Machine
from daemons.llmctl.host.state import CONFIG, HostState
from daemons.runtime import settings
from daemons.runtime.errors import Fatal

_CERTIFICATES = ("tls.pem", "engine-access.pem")
_SOON_SECONDS = 21 * 86400


def settings_files(machine: Machine, _: HostState) -> Iterator[Finding]:
    """Files that their daemons refuse."""
    for path, model in files_below(machine.root / CONFIG):
        try:
            settings.load(path, model)
        except Fatal as error:
            for line in str(error).splitlines():
                yield Finding(path.name, line, "correct the inventory, then run deploy.yml")


def credentials(machine: Machine, _: HostState) -> Iterator[Finding]:
    """Secrets that others can read, and credentials without which a unit does not start."""
    folder = machine.root / CONFIG / "credentials"
    try:
        present = {path.name: path for path in folder.iterdir()}
    except OSError:
        return
    wanted = {"llm-gateway.service": "cache-salt", "llm-model@.service": "hf-token"}
    for unit, name in wanted.items():
        if (machine.root / "etc/systemd/system" / unit).exists() and name not in present:
            what = f"the credential {name} is missing: {unit} cannot start"
            yield Finding(str(folder), what, f"install -m 0400 /dev/null {folder / name}; run deploy.yml")
    for path in [folder, *present.values()]:
        if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            yield Finding(str(path), "can be read by others than root", f"chmod go= {path}")


def models(machine: Machine, _: HostState) -> Iterator[Finding]:
    """Models that are folders, and are not there."""
    for path in sorted((machine.root / CONFIG / "engines").glob("*.yaml")):
        try:
            model = settings.load(path, EngineSettings).model
        except Fatal:
            continue
        folder = machine.root / model.lstrip("/")
        if is_folder(model) and not (folder / "config.json").exists():
            cure = "copy the model there, readable for group llm, or correct the key model"
            yield Finding(path.stem, f"there is no model in {model}", cure)


def certificates(machine: Machine, _: HostState) -> Iterator[Finding]:
    """Certificates that end soon."""
    for name in _CERTIFICATES:
        path = machine.root / CONFIG / name
        if not path.exists():
            continue
        check = machine.run("openssl", "x509", "-in", str(path), "-noout", "-checkend", str(_SOON_SECONDS))
        if check.status == 1:
            cure = f"put another one there, or remove {path} and run deploy.yml where it is self-signed"
            yield Finding(str(path), "the certificate ends within 21 days, or has ended", cure, warning=True)


def links(machine: Machine, _: HostState) -> Iterator[Finding]:
    """A release or a vLLM in force that is not there."""
    for link, cure in (
        (Path("opt/llm/current"), "rollback.yml, or deploy.yml with the wheel of that release"),
        (Path("opt/llm/vllm/current"), "run deploy.yml, which installs vLLM"),
    ):
        path = machine.root / link
        if path.is_symlink() and not (machine.root / str(path.readlink()).lstrip("/")).exists():
            yield Finding(f"/{link}", f"leads to {path.readlink()}, which is not there", cure)
