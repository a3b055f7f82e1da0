"""What each XID error means and what to do about it.

Codes, meanings and the advice follow NVIDIA's published "XID Errors" documentation: its catalogue for Ampere
and newer, and the older list. `Action` condenses it to what an operator of this stack does. The page
``docs/xid.md`` is generated from this table.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby


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


def _each(codes: Iterable[int], meaning: str, action: Action) -> Iterator[Xid]:
    return (Xid(code, meaning, action) for code in codes)


_COPY_ENGINES = (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136))
_MEDIA_ENGINES = (60, 82, 83, 84, 86, 88, 89, *range(96, 106), 139, 142)

_ENTRIES = (
    Xid(8, "GPU stopped processing", Action.CHECK),
    Xid(13, "graphics engine exception", Action.APPLICATION),
    Xid(31, "GPU memory page fault", Action.APPLICATION),
    Xid(32, "invalid or corrupted push buffer stream", Action.CHECK),
    *_each((37, 38), "driver firmware error", Action.CHECK),
    *_each(_COPY_ENGINES, "copy engine exception: restart the engine that met it", Action.CHECK),
    Xid(43, "GPU stopped processing: a process was ended by a fault of its own", Action.APPLICATION),
    Xid(44, "graphics engine fault during a context switch", Action.CHECK),
    Xid(45, "preemptive cleanup, after an earlier error or the end of a process", Action.APPLICATION),
    Xid(46, "GPU stopped processing: timeout", Action.RESET),
    Xid(48, "double-bit ECC error", Action.RESET, page=True),
    Xid(54, "auxiliary power is not connected", Action.CHECK),
    Xid(56, "display engine error", Action.CHECK),
    *_each(_MEDIA_ENGINES, "video, JPEG or optical-flow engine exception", Action.CHECK),
    Xid(61, "internal micro-controller breakpoint", Action.RESET),
    Xid(62, "internal micro-controller halt", Action.RESET, page=True),
    Xid(63, "row remapping or page retirement recorded: takes effect at the next reset", Action.CHECK),
    Xid(64, "row remapping or page retirement failed to be recorded", Action.REPLACE, page=True),
    *_each((66, 67), "illegal access by the driver", Action.CHECK),
    Xid(68, "video processor exception", Action.APPLICATION),
    Xid(69, "graphics engine class error", Action.APPLICATION),
    Xid(74, "NVLink error", Action.RESET, page=True),
    Xid(79, "GPU has fallen off the bus", Action.REBOOT, page=True),
    Xid(80, "corrupted data sent to the GPU", Action.CHECK),
    Xid(92, "high rate of single-bit ECC errors", Action.CHECK),
    Xid(93, "wear limit of the InfoROM reached", Action.CHECK),
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
    *_each(range(144, 151), "NVLink error of the fifth generation (SAW to MSE)", Action.RESET),
    Xid(154, "recovery action of the GPU changed: gpu_recovery_action says to what", Action.CHECK),
    Xid(155, "NVLink switched off by software", Action.RESET),
    Xid(156, "resource retirement recorded: takes effect at the next reset", Action.RESET),
    Xid(157, "resource retirement failed: no spares are left", Action.REPLACE),
    Xid(158, "GPU fatal timeout", Action.RESET),
    Xid(159, "CHI error without data", Action.CHECK),
    *_each((160, 161), "memory channel retirement recorded, or failed", Action.CHECK),
    Xid(167, "PCIe fatal timeout", Action.CHECK),
    Xid(168, "memory errors in the protected region: capacity is reduced", Action.CHECK),
    Xid(169, "security micro-controller halt", Action.CHECK),
    *_each((171, 172), "details of XID 48: in DRAM (171), in SRAM (172)", Action.CHECK),
)

CATALOGUE = {entry.code: entry for entry in _ENTRIES}

PAGING = tuple(entry.code for entry in _ENTRIES if entry.page)
"""The codes worth a call, shown as zero from the start, so that ``increase()`` sees the first one."""


def markdown() -> str:
    """The catalogue as a page of documentation."""
    rows = "\n".join(
        f"| {_spans([entry.code for entry in group])} | {meaning} | {action} | {'yes' if page else ''} |"
        for (meaning, action, page), group in groupby(
            _ENTRIES, lambda entry: (entry.meaning, entry.action, entry.page)
        )
    )
    advice = "\n".join(f"- **{action}**: {text}." for action, text in ADVICE.items())
    return _PAGE.format(rows=rows, advice=advice)


def _spans(codes: list[int]) -> str:
    """``39-41, 70`` for 39, 40, 41, 70."""
    spans: list[list[int]] = []
    for code in codes:
        if spans and spans[-1][-1] == code - 1:
            spans[-1].append(code)
        else:
            spans.append([code])
    return ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


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
