"""The GPUs, and the engines on them."""

from grafana_foundation_sdk.builders import dashboard as builders

from observability.grafana.build.frame import dashboard
from observability.grafana.build.kit import RED, Panel, Query, Step, rising, rows_of, series
from observability.grafana.build.thresholds import threshold

_WHERE = 'host=~"$host"'
_GPU = "{{host}} GPU {{gpu}}"


def build() -> builders.Dashboard:
    """The dashboard."""
    return dashboard(
        "llm-gpus",
        "LLM: GPUs",
        "Load, memory, heat and faults of every GPU, and which engine it works for.",
        ("host",),
        (("Load", _load()), ("Power and heat", _heat()), ("Faults", _faults()), ("Links", _links())),
    )


def _each(metric: str, where: str = _WHERE, legend: str = _GPU) -> Query:
    return Query(f"{metric}{{{where}}}", legend)


def _load() -> list[Panel]:
    return [
        rows_of(
            "GPUs",
            "Every GPU that answers, with its model, address and capability (gpu_info).",
            "none",
            Query(f"max by (host, gpu, name, uuid, pci_bus_id, compute_capability) (gpu_info{{{_WHERE}}})"),
            hidden=["Value"],
        ),
        rows_of(
            "Engines on GPUs",
            "GPU memory of each systemd unit (gpu_unit_memory_used_bytes); llm-engine@NAME is the engine NAME.",
            "bytes",
            Query(f"sum by (host, gpu, unit) (gpu_unit_memory_used_bytes{{{_WHERE}}})"),
        ),
        series(
            "Utilisation",
            "Share of time in which a kernel ran (gpu_utilization_ratio). High with few tokens: look at power.",
            "percentunit",
            [_each("gpu_utilization_ratio")],
            most=1,
        ),
        series(
            "Memory used",
            "Memory allocated by processes (gpu_memory_used_bytes); vLLM takes its share at the start.",
            "bytes",
            [_each("gpu_memory_used_bytes")],
        ),
        series(
            "Memory free",
            "Memory that is not allocated (gpu_memory_free_bytes).",
            "bytes",
            [_each("gpu_memory_free_bytes")],
            steps=(Step(threshold("gpu_memory_free_gb") * 1e9, "green"),),
            base=RED,
        ),
        series(
            "Memory by unit",
            "Memory of each systemd unit on each GPU (gpu_unit_memory_used_bytes).",
            "bytes",
            [_each("gpu_unit_memory_used_bytes", legend="GPU {{gpu}} {{unit}}")],
            stacked=True,
        ),
        series(
            "Utilisation by unit",
            "Share of time in which kernels of each unit ran (gpu_unit_utilization_ratio).",
            "percentunit",
            [_each("gpu_unit_utilization_ratio", legend="GPU {{gpu}} {{unit}}")],
            most=1,
        ),
        series(
            "Memory traffic",
            "Share of time in which GPU memory was read or written (gpu_memory_busy_ratio); making tokens is "
            "bound by it.",
            "percentunit",
            [_each("gpu_memory_busy_ratio")],
            most=1,
        ),
    ]


def _heat() -> list[Panel]:
    return [
        series(
            "Power",
            "Power drawn, and the limit in force (gpu_power_watts, gpu_power_limit_watts).",
            "watt",
            [_each("gpu_power_watts"), _each("gpu_power_limit_watts", legend=f"{_GPU} limit")],
        ),
        series(
            "Temperature",
            "Temperature of the die (gpu_temperature_celsius).",
            "celsius",
            [_each("gpu_temperature_celsius")],
            steps=rising(threshold("gpu_temperature_celsius")),
        ),
        series(
            "SM clock",
            "Clock of the multiprocessors (gpu_clock_hertz).",
            "rothz",
            [_each("gpu_clock_hertz", f'{_WHERE}, clock="sm"')],
        ),
        series(
            "Throttling",
            "Reasons that hold the clocks down; idleness and clocks set by hand left out "
            "(gpu_clock_event_active).",
            "none",
            [
                Query(
                    "sum by (host, gpu, reason) (gpu_clock_event_active"
                    f'{{{_WHERE}, reason!~"gpu_idle|application_clocks|display_clocks|sync_boost"}})',
                    "GPU {{gpu}} {{reason}}",
                )
            ],
            stacked=True,
        ),
        series(
            "Fan",
            "Speed of the fans, where there are any (gpu_fan_speed_ratio).",
            "percentunit",
            [Query(f"max by (host, gpu) (gpu_fan_speed_ratio{{{_WHERE}}})", _GPU)],
        ),
        series(
            "Energy a token",
            "Joules of all GPUs for each token made (gpu_energy_joules_total, vllm:generation_tokens_total).",
            "joule",
            [
                Query(
                    f"sum by (host) (rate(gpu_energy_joules_total{{{_WHERE}}}[$__rate_interval])) / "
                    f"sum by (host) (rate(vllm:generation_tokens_total{{{_WHERE}}}[$__rate_interval]))",
                    "{{host}}",
                )
            ],
        ),
    ]


def _faults() -> list[Panel]:
    return [
        series(
            "XID errors",
            "Errors that the driver reported within an hour, by code (gpu_xid_errors_total); docs/xid.md says "
            "what each means.",
            "none",
            [
                Query(
                    f"sum by (host, gpu, xid) (increase(gpu_xid_errors_total{{{_WHERE}}}[1h])) > 0",
                    f"{_GPU} XID {{{{xid}}}}",
                )
            ],
            steps=(Step(1, RED),),
        ),
        series(
            "Uncorrected memory errors",
            "ECC errors since the driver was loaded that could not be corrected (gpu_ecc_errors_total). Empty "
            "where ECC is off or missing.",
            "none",
            [_each("gpu_ecc_errors_total", f'{_WHERE}, error="uncorrected", counter="volatile"')],
            steps=(Step(1, RED),),
        ),
        series(
            "Memory rows replaced",
            "Rows replaced by spares over the life of the board, and those that wait for a reset "
            "(gpu_remapped_rows_total, gpu_row_remap_pending).",
            "none",
            [
                Query(f"sum by (host, gpu) (gpu_remapped_rows_total{{{_WHERE}}})", _GPU),
                _each("gpu_row_remap_pending", legend=f"{_GPU} pending"),
            ],
        ),
        series(
            "GPUs that answer",
            "GPUs that answer and that should (gpu_present, gpu_expected).",
            "none",
            [
                _each("gpu_present", legend="{{host}} present"),
                _each("gpu_expected", legend="{{host}} expected"),
            ],
        ),
        series(
            "Age of the data",
            "Time since NVML was last read (gpu_exporter_snapshot_age_seconds); old data is not shown at all.",
            "s",
            [_each("gpu_exporter_snapshot_age_seconds", legend="{{host}}")],
            steps=rising(5),
        ),
        series(
            "Workers replaced",
            "Workers of the exporter that ended within an hour, by reason "
            "(gpu_exporter_worker_endings_total); hung: the driver did not answer.",
            "none",
            [
                Query(
                    f"sum by (host, reason) (increase(gpu_exporter_worker_endings_total{{{_WHERE}}}[1h]))",
                    "{{host}} {{reason}}",
                )
            ],
            steps=rising(1),
        ),
    ]


def _links() -> list[Panel]:
    return [
        series(
            "PCIe traffic",
            "Traffic over PCIe, a sample of 20 ms (gpu_pcie_throughput_bytes_per_second).",
            "Bps",
            [_each("gpu_pcie_throughput_bytes_per_second", legend=f"{_GPU} {{{{direction}}}}")],
        ),
        series(
            "PCIe link",
            "Lanes and generation in force (gpu_pcie_link_width_lanes, gpu_pcie_link_generation); the "
            "generation falls when a GPU idles, the width must not.",
            "none",
            [
                _each("gpu_pcie_link_width_lanes", legend=f"{_GPU} lanes"),
                _each("gpu_pcie_link_generation", legend=f"{_GPU} generation"),
            ],
        ),
        series(
            "PCIe replays",
            "Packets sent again because of errors on the link, a second (gpu_pcie_replays_total).",
            "cps",
            [Query(f"sum by (host, gpu) (rate(gpu_pcie_replays_total{{{_WHERE}}}[$__rate_interval]))", _GPU)],
            steps=rising(1),
        ),
    ]
