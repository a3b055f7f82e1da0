"""``llm-gpu-exporter``: NVML to Prometheus."""

import gc
import sys

from daemons.gpu_exporter.daemon import GpuExporter
from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.runtime import cli, lifecycle, settings, sockets
from daemons.runtime.notify import SystemdNotifier

PROG = "llm-gpu-exporter"


def main(argv: list[str] | None = None) -> int:
    """Run ``llm-gpu-exporter``; returns its exit status."""
    args = cli.parser(
        PROG, "Serves GPU metrics to Prometheus.", cli.CONFIG_DIR / "gpu-exporter.yaml"
    ).parse_args(argv)

    def load() -> GpuExporterSettings:
        return settings.load(args.config, GpuExporterSettings)

    def check() -> str:
        address = load().listen
        return f"{args.config} is good: serves {address.host}:{address.port}"

    def run() -> int:
        # What is loaded by now stays for good: a full collection would stop the loop for 20 ms.
        gc.collect()
        gc.freeze()
        handed_over = [sock for group in sockets.inherited().values() for sock in group]
        notifier = SystemdNotifier()
        return lifecycle.run(GpuExporter(load, notifier, next(iter(handed_over), None)), notifier)

    if args.check:
        return cli.report_check(PROG, check)
    return cli.guard(PROG, args.log_level, run)


if __name__ == "__main__":
    sys.exit(main())
