"""The process that talks to NVML, and may hang in it: ``python -m daemons.gpu_exporter.worker JSON``.

It writes one frame (`snapshot.encode`) a collection to its standard output, a socket, and knows nothing of
scrapes. It ends when told to (SIGTERM), when its parent is gone, or when NVML broke in a way that only a
fresh process can mend, such as a library newer than the one that is loaded.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time

import msgspec

from daemons.gpu_exporter import collectors
from daemons.gpu_exporter.cgroup import unit_of_pid
from daemons.gpu_exporter.collection import Collection
from daemons.gpu_exporter.nvml import Nvml, NvmlGone, open_nvml
from daemons.gpu_exporter.snapshot import NvmlState, Snapshot, encode

_RETRY_OPEN = 10.0
_GRACE = 5.0


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told at its start; the settings of the same names."""

    interval: float
    slow_interval: float
    max_units: int
    dcgm_names: bool


class Worker:
    """The loop: open NVML, take snapshots on a clock of its own, send them."""

    def __init__(self, orders: Orders, out: socket.socket, stop: threading.Event) -> None:
        self._orders = orders
        self._out = out
        self._stop = stop

    def run(self) -> None:
        """Until told to stop or until only a fresh process can help."""
        nvml = self._open()
        if nvml is None:
            return
        try:
            self._collect(nvml)
        except NvmlGone as error:
            self._send(_absent(error))
        finally:
            nvml.close()

    def _open(self) -> Nvml | None:
        """NVML as soon as there is one; says meanwhile, once an interval, why there is none."""
        retry_at, last = 0.0, Snapshot(state=NvmlState.STARTING)
        while not self._stop.is_set():
            if time.monotonic() >= retry_at:
                try:
                    return open_nvml()
                except NvmlGone as error:
                    last, retry_at = _absent(error), time.monotonic() + _RETRY_OPEN
            self._send(msgspec.structs.replace(last, taken_at=time.time(), taken_monotonic=time.monotonic()))
            if last.state is NvmlState.VERSION_MISMATCH:
                return None
            self._stop.wait(self._orders.interval)
        return None

    def _collect(self, nvml: Nvml) -> None:
        orders = self._orders
        standard = collectors.standard(unit_of_pid, orders.max_units)
        collection = Collection(nvml, standard, orders.slow_interval, dcgm_names=orders.dcgm_names)
        due = time.monotonic()
        with contextlib.closing(collection):
            while not self._stop.is_set():
                self._send(collection.take())
                due = max(due + orders.interval, time.monotonic())
                self._stop.wait(due - time.monotonic())

    def _send(self, snapshot: Snapshot) -> None:
        self._out.sendall(encode(snapshot))


def _absent(error: NvmlGone) -> Snapshot:
    return Snapshot(
        state=error.state, detail=str(error), taken_at=time.time(), taken_monotonic=time.monotonic()
    )


def _end_with(out: socket.socket) -> None:
    """End this process, even one that hangs in NVML, some time after its parent stopped listening."""
    hung_up = select.poll()
    hung_up.register(out, 0)
    hung_up.poll()
    time.sleep(_GRACE)
    os._exit(1)


def main(argv: list[str]) -> int:
    """``argv``: `Orders` as JSON."""
    out = socket.socket(fileno=os.dup(sys.stdout.fileno()))
    # What a library prints must not end up between the frames.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    orders = msgspec.json.decode(argv[0], type=Orders)
    stop = threading.Event()
    threading.Thread(target=_end_with, args=(out,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # Ctrl-C reaches the whole foreground group; when this process ends is its parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Worker(orders, out, stop).run()
    # Destructors of a broken driver library are not worth waiting for.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
