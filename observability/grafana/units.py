"""Values with their units, roughly as Grafana writes them."""

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", "k", "M", "G", "T")
_SUFFIX = {
    "reqps": " req/s",
    "watt": " W",
    "celsius": " °C",
    "joule": " J",
    "cps": " /s",
    "wps": " /s",
    "none": "",
    "short": "",
}


def shown(value: float, unit: str) -> str:
    """`value` in `unit`, short enough for an axis."""
    if unit == "percentunit":
        return f"{_number(value * 100)} %"
    if unit == "s":
        return _seconds(value)
    if unit in ("bytes", "Bps"):
        return _scaled(value, 1024, _BINARY) + ("/s" if unit == "Bps" else "")
    if unit == "rothz":
        return _scaled(value, 1000, _DECIMAL) + "Hz"
    suffix = unit.removeprefix("suffix:") if unit.startswith("suffix:") else _SUFFIX[unit]
    return _scaled(value, 1000, _DECIMAL).rstrip() + suffix


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _scaled(value: float, base: int, names: tuple[str, ...]) -> str:
    place = 0
    while abs(value) >= base and place < len(names) - 1:
        value /= base
        place += 1
    return f"{_number(value)} {names[place]}"


def _seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    for limit, factor, name in ((0.001, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
        if abs(value) < limit:
            return f"{_number(value * factor)} {name}"
    return f"{_number(value / 3600)} h" if abs(value) < 172800 else f"{_number(value / 86400)} days"
