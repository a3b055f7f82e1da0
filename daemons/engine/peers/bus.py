"""What stands between PCI devices that write to each other: the IOMMU, and ACS in the bridges above them."""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_FIRST_EXTENDED = 0x100
_ACS = 0x000D
_ACS_CONTROL = 6
# P2P request redirect and completion redirect: such a bridge sends peer traffic up to the root.
_REDIRECT = 0b1100

UNKNOWN = "unknown: only root may read it"


@dataclass(frozen=True, slots=True)
class Bus:
    """The way between some devices, in words.

    Attributes:
        iommu: ``off``, ``pass-through`` or ``translating``.
        acs: ``off``, ``redirects at`` and the bridges, or why that is not known.
    """

    iommu: str
    acs: str


def read_bus(addresses: Sequence[str], devices: Path = Path("/sys/bus/pci/devices")) -> Bus:
    """What sysfs says of the way between the devices at `addresses`."""
    bridges = sorted({bridge for address in addresses for bridge in _bridges(devices / address)})
    states = {bridge: _redirects(bridge) for bridge in bridges}
    redirecting = [bridge.name for bridge, redirects in states.items() if redirects]
    acs = f"redirects at {' '.join(redirecting)}" if redirecting else "off"
    if not redirecting and None in states.values():
        acs = UNKNOWN
    return Bus(_iommu([devices / address for address in addresses]), acs)


def _iommu(devices: Sequence[Path]) -> str:
    kinds = {_read(device / "iommu_group" / "type") for device in devices} - {""}
    if not kinds:
        return "off"
    return "pass-through" if kinds == {"identity"} else "translating"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _bridges(device: Path) -> Iterator[Path]:
    """The folders of the bridges above `device`: in sysfs a device lies in the folder of its bridge."""
    for parent in device.resolve().parents:
        if _ADDRESS.fullmatch(parent.name):
            yield parent


def _redirects(bridge: Path) -> bool | None:
    """Whether the bridge redirects peer traffic; None when its registers cannot be read."""
    try:
        registers = (bridge / "config").read_bytes()
    except OSError:
        return None
    if len(registers) <= _FIRST_EXTENDED:
        return None
    control = acs_control(registers)
    return control is not None and bool(control & _REDIRECT)


def acs_control(registers: bytes) -> int | None:
    """The ACS control register in a device's configuration space; None when it has none.

    PCI Express base specification, 7.7.11: extended capabilities are a list from 0x100 on, each with its id
    in 16 bits, its version in 4 and the offset of the next in 12.
    """
    at, seen = _FIRST_EXTENDED, set[int]()
    while at >= _FIRST_EXTENDED and at + 8 <= len(registers) and at not in seen:
        seen.add(at)
        (header,) = struct.unpack_from("<I", registers, at)
        if header & 0xFFFF == _ACS:
            (control,) = struct.unpack_from("<H", registers, at + _ACS_CONTROL)
            return int(control)
        at = header >> 20
    return None
