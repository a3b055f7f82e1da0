"""The hosts underneath."""

from grafana_foundation_sdk.builders import dashboard as builders

from observability.grafana.build.frame import dashboard
from observability.grafana.build.kit import RED, Panel, Query, Step, bars, figure, rising, series
from observability.grafana.build.thresholds import threshold

_WHERE = 'host=~"$host"'


def build() -> builders.Dashboard:
    """The dashboard."""
    return dashboard(
        "llm-host",
        "LLM: host",
        "Processor, memory, disks and network of the hosts, their units, and Prometheus itself.",
        ("host",),
        (
            ("Load", _load()),
            ("Disks and network", _disks()),
            ("Service", _service()),
            ("Monitoring", _monitoring()),
        ),
    )


def _load() -> list[Panel]:
    return [
        series(
            "Processor",
            "Share of the processors' time by what they did (node_cpu_seconds_total).",
            "percentunit",
            [
                Query(
                    f'sum by (host, mode) (rate(node_cpu_seconds_total{{{_WHERE}, mode!="idle"}}[$__rate_interval]))'
                    f" / on (host) group_left () count by (host)"
                    f' (node_cpu_seconds_total{{{_WHERE}, mode="idle"}})',
                    "{{host}} {{mode}}",
                )
            ],
            stacked=True,
        ),
        series(
            "Memory",
            "Memory in use that cannot be reclaimed, and what there is (node_memory_MemAvailable_bytes, "
            "node_memory_MemTotal_bytes).",
            "bytes",
            [
                Query(
                    f"node_memory_MemTotal_bytes{{{_WHERE}}} - node_memory_MemAvailable_bytes{{{_WHERE}}}",
                    "{{host}} used",
                ),
                Query(f"node_memory_MemTotal_bytes{{{_WHERE}}}", "{{host}} total"),
            ],
        ),
        series(
            "Load",
            "Processes that run or wait for the disk, over five minutes, per processor (node_load5).",
            "none",
            [
                Query(
                    f'node_load5{{{_WHERE}}} / on (host) count by (host) (node_cpu_seconds_total{{{_WHERE}, mode="idle"}})',
                    "{{host}}",
                )
            ],
            steps=rising(1, 2),
        ),
    ]


def _disks() -> list[Panel]:
    free = threshold("disk_free_ratio")
    return [
        bars(
            "Disk used",
            "Share of each file system in use (llm:filesystem_free:ratio).",
            "percentunit",
            Query(
                f"max by (host, mountpoint) (1 - llm:filesystem_free:ratio{{{_WHERE}}})",
                "{{host}} {{mountpoint}}",
            ),
            steps=rising(0.7, 1 - free),
            most=1,
        ),
        series(
            "Disk traffic",
            "Bytes read and written a second (node_disk_read_bytes_total, node_disk_written_bytes_total).",
            "Bps",
            [
                Query(
                    f"sum by (host) (rate(node_disk_read_bytes_total{{{_WHERE}}}[$__rate_interval]))",
                    "{{host}} read",
                ),
                Query(
                    f"sum by (host) (rate(node_disk_written_bytes_total{{{_WHERE}}}[$__rate_interval]))",
                    "{{host}} written",
                ),
            ],
        ),
        series(
            "Network traffic",
            "Bytes in and out a second, loopback left out (node_network_receive_bytes_total, "
            "node_network_transmit_bytes_total).",
            "Bps",
            [
                Query(
                    f'sum by (host) (rate(node_network_receive_bytes_total{{{_WHERE}, device!="lo"}}[$__rate_interval]))',
                    "{{host}} in",
                ),
                Query(
                    f'sum by (host) (rate(node_network_transmit_bytes_total{{{_WHERE}, device!="lo"}}[$__rate_interval]))',
                    "{{host}} out",
                ),
            ],
        ),
    ]


def _service() -> list[Panel]:
    return [
        series(
            "Units that are not active",
            "Units of the service that failed or are on their way up or down (node_systemd_unit_state).",
            "none",
            [
                Query(
                    "sum by (host, name, state) (node_systemd_unit_state"
                    f'{{{_WHERE}, state=~"failed|activating|deactivating"}}) > 0',
                    "{{host}} {{name}} {{state}}",
                )
            ],
            steps=(Step(1, RED),),
        ),
        series(
            "Memory of the daemons",
            "Resident memory of gateways, engine supervisors and exporters (process_resident_memory_bytes).",
            "bytes",
            [
                Query(
                    f'sum by (host, job) (process_resident_memory_bytes{{{_WHERE}, job=~"llm-.+"}})',
                    "{{host}} {{job}}",
                )
            ],
        ),
        series(
            "Certificates",
            "Time until each certificate ends (llm_certificate_expiry_timestamp_seconds).",
            "s",
            [Query(f"llm_certificate_expiry_timestamp_seconds{{{_WHERE}}} - time()", "{{host}} {{file}}")],
            base=RED,
            steps=(Step(threshold("certificate_days") * 86400, "green"),),
        ),
    ]


def _monitoring() -> list[Panel]:
    return [
        figure(
            "Series",
            "Series that Prometheus holds now (prometheus_tsdb_head_series).",
            "short",
            Query("sum(prometheus_tsdb_head_series)"),
        ),
        figure(
            "Disk of the series",
            "Disk that Prometheus' blocks take (prometheus_tsdb_storage_blocks_bytes); bounded by "
            "prometheus_retention_size.",
            "bytes",
            Query("sum(prometheus_tsdb_storage_blocks_bytes)"),
        ),
        series(
            "Duration of the rules",
            "How long the last evaluation of each group of rules took (prometheus_rule_group_last_duration_seconds).",
            "s",
            [
                Query(
                    "label_replace(prometheus_rule_group_last_duration_seconds, "
                    '"group", "$1", "rule_group", ".*;(.*)")',
                    "{{group}}",
                )
            ],
            steps=rising(0.1),
        ),
        series(
            "Duration of scrapes",
            "How long each target took to answer (scrape_duration_seconds).",
            "s",
            [Query(f"max by (host, job) (scrape_duration_seconds{{{_WHERE}}})", "{{host}} {{job}}")],
            steps=rising(5),
        ),
    ]
