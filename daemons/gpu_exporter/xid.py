"""What each XID error means and what to do about it.

Codes, meanings and the advice follow NVIDIA's published "XID Errors" documentation for data-centre drivers;
`Action` condenses it to what an operator of this stack does. ``docs/xid.md`` is generated from this table.
"""

from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    """What to do, from the gravest down."""

    REPLACE = "replace"
    REBOOT = "reboot"
    RESET = "reset"
    CHECK = "check"
    APPLICATION = "application"


ADVICE = {
    Action.REPLACE: "take the host out of service, run the vendor's diagnostics, have the GPU replaced if it "
    "recurs",
    Action.REBOOT: "drain the host and reboot it; if the error returns, treat the GPU as broken",
    Action.RESET: "drain the GPU's engines and reset it: `systemctl reload llm-gpu-exporter`, then "
    "`nvidia-smi --gpu-reset -i INDEX`, or reboot the host",
    Action.CHECK: "look at the kernel log and at the GPU's other metrics; act if it recurs",
    Action.APPLICATION: "look at the process named in the kernel log: usually its fault, not the GPU's",
}


@dataclass(frozen=True, slots=True)
class Xid:
    """An entry of the catalogue.

    Attributes:
        meaning: a few words.
        page: whether somebody should be called at once.
    """

    code: int
    meaning: str
    action: Action
    page: bool = False


_ENTRIES = (
    Xid(13, "graphics engine exception", Action.APPLICATION),
    Xid(31, "GPU memory page fault", Action.APPLICATION),
    Xid(32, "invalid or corrupted push buffer stream", Action.CHECK),
    Xid(38, "driver firmware error", Action.CHECK),
    Xid(43, "GPU stopped processing: a process was ended by a fault of its own", Action.APPLICATION),
    Xid(45, "preemptive cleanup, after an earlier error or the end of a process", Action.APPLICATION),
    Xid(48, "double-bit ECC error", Action.RESET, page=True),
    Xid(56, "display engine error", Action.CHECK),
    Xid(61, "internal micro-controller breakpoint", Action.RESET),
    Xid(62, "internal micro-controller halt", Action.RESET, page=True),
    Xid(63, "row remapping or page retirement recorded", Action.RESET),
    Xid(64, "row remapping or page retirement failed to be recorded", Action.REPLACE, page=True),
    Xid(68, "video processor exception", Action.APPLICATION),
    Xid(69, "graphics engine class error", Action.APPLICATION),
    Xid(74, "NVLink error", Action.RESET, page=True),
    Xid(79, "GPU has fallen off the bus", Action.REBOOT, page=True),
    Xid(92, "high rate of single-bit ECC errors", Action.CHECK),
    Xid(94, "contained uncorrectable ECC error: only the process that met it is ended", Action.RESET),
    Xid(95, "uncontained uncorrectable ECC error", Action.RESET, page=True),
    Xid(109, "context switch timeout", Action.RESET),
    Xid(110, "security fault", Action.RESET),
    Xid(119, "GSP firmware does not answer", Action.RESET, page=True),
    Xid(120, "GSP firmware error", Action.RESET, page=True),
    Xid(121, "C2C link error corrected", Action.CHECK),
    Xid(122, "SPI firmware access failed", Action.CHECK),
    Xid(123, "SPI or power-management request refused", Action.CHECK),
    Xid(136, "link training failed", Action.RESET),
    Xid(137, "NVLink privilege or access fault", Action.APPLICATION),
    Xid(140, "unrecovered ECC error", Action.RESET, page=True),
    Xid(143, "GPU failed to initialise", Action.RESET, page=True),
    Xid(144, "NVLink SAW error", Action.RESET),
    Xid(145, "NVLink RLW error", Action.RESET),
    Xid(149, "NVLink NETIR error", Action.RESET),
    Xid(150, "NVLink MSE error", Action.RESET),
    Xid(154, "recovery action of the GPU changed: gpu_recovery_action says to what", Action.CHECK),
    Xid(155, "NVLink switched off by software", Action.RESET),
    Xid(156, "resource retirement recorded", Action.CHECK),
    Xid(158, "GPU fatal timeout", Action.RESET),
)

CATALOGUE = {entry.code: entry for entry in _ENTRIES}

PAGING = tuple(entry.code for entry in _ENTRIES if entry.page)
"""The codes worth a call, shown as zero from the start, so that ``increase()`` sees the first one."""


def markdown() -> str:
    """The catalogue as a page of documentation."""
    rows = "\n".join(
        f"| {entry.code} | {entry.meaning} | {entry.action} | {'yes' if entry.page else ''} |"
        for entry in _ENTRIES
    )
    advice = "\n".join(f"- **{action}**: {text}." for action, text in ADVICE.items())
    return _PAGE.format(rows=rows, advice=advice)


_PAGE = """# XID errors

<!-- Generated from daemons/gpu_exporter/xid.py: python -m daemons.gpu_exporter.xid > docs/xid.md -->

The NVIDIA driver numbers its error reports. `gpu_xid_errors_total` counts them by GPU and code,
`gpu_xid_last_timestamp_seconds` tells when each was last seen. Codes that page are shown as 0 from the start.
Meanings follow NVIDIA's published XID documentation; a code that is missing here is counted all the same.

| XID | meaning | action | page |
|---:|---|---|---|
{rows}

## Actions

{advice}
"""


if __name__ == "__main__":
    print(markdown(), end="")
