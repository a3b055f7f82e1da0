"""Known troubles, each with its cure: a check yields a finding for each trouble it sees."""

from collections.abc import Callable, Iterator

from daemons.llmctl.host.checks import files, gpus, service, system
from daemons.llmctl.host.checks.finding import Finding
from daemons.llmctl.host.machine import Machine
from daemons.llmctl.host.state import HostState

Check = Callable[[Machine, HostState], Iterator[Finding]]

SERVICE: tuple[Check, ...] = (
    service.units,
    service.start_limits,
    service.engines,
    service.alerts,
    service.keys,
    gpus.faults,
)
"""What `status` answers for."""
EVERY: tuple[Check, ...] = (
    *SERVICE,
    service.restarts,
    service.running_release,
    gpus.driver,
    gpus.nouveau,
    gpus.nodes,
    gpus.missing,
    gpus.throttled,
    gpus.upgrades,
    files.settings_files,
    files.credentials,
    files.models,
    files.certificates,
    files.links,
    system.disks,
    system.clock,
    system.memory,
    system.targets,
)


def findings(checks: tuple[Check, ...], machine: Machine, state: HostState) -> list[Finding]:
    """What `checks` find, faults before warnings."""
    found = [finding for check in checks for finding in check(machine, state)]
    return sorted(found, key=lambda finding: finding.warning)
