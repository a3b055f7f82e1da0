"""Guards that every test runs under."""

import logging
import signal
from collections.abc import Iterator

import pytest
import structlog
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

# No property has a deadline: the machine that runs the tests may be busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_configure() -> None:
    """What a shell starts with ``&`` ignores SIGINT, and so would every process of a test."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A blocking call made by the daemons on an event loop raises BlockingError."""
    with blockbuster_ctx("daemons") as guard:
        # A log record is written where it is made: a short write, bounded by the sink itself.
        for name in ("os.write", "socket.socket.sendto", "socket.socket.send", "socket.socket.connect"):
            guard.functions[name].can_block_in("daemons/runtime/logs.py", {"write", "_send_as_file"})
        # The process' own /proc files are memory, not a disk.
        for name in ("io.BufferedReader.read", "os.listdir"):
            guard.functions[name].can_block_in("prometheus_client/process_collector.py", "collect")
        yield guard


@pytest.fixture(autouse=True)
def _no_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run as if started by hand, whatever started them."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A test that calls a `main` configures logging for the whole process, and not for later tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
