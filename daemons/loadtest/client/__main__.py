"""The generator process: takes an order on standard input, reports on standard output."""

import asyncio
import gc
import os
import resource
import signal
import sys
from typing import BinaryIO

import uvloop

from daemons.loadtest.client.frames import (
    Failed,
    FrameBuffer,
    Report,
    decode_order,
    encode,
)
from daemons.loadtest.client.generator import Generator
from daemons.loadtest.load.plan import Plan
from daemons.loadtest.load.sessions import workload
from daemons.runtime.errors import Fatal


class _Output(asyncio.BaseProtocol):
    """The pipe of reports; `closed` is set when all of them are through, or nobody reads them."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


class _Commands(asyncio.Protocol):
    """Standard input after the order: commands; its end means that nobody wants the result any more."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._frames = FrameBuffer(self._on_command)

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)

    def _on_command(self, body: bytes) -> None:
        if b"cut" in body:
            self._generator.cut()
        else:
            self._generator.drain()

    def connection_lost(self, exc: Exception | None) -> None:
        self._generator.cut()


def _read_order(stream: BinaryIO) -> bytes:
    size = int.from_bytes(_read_exactly(stream, 4), "big")
    return _read_exactly(stream, size)


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    got = b""
    while len(got) < size:
        more = stream.read(size - len(got))
        if not more:
            raise SystemExit("the generator is started by `llmctl loadtest`, which gives it its order")
        got += more
    return got


async def _generate(order_body: bytes, out: BinaryIO, commands: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    transport, output = await loop.connect_write_pipe(_Output, out)

    def emit(report: Report) -> None:
        transport.write(encode(report))

    order = decode_order(order_body)
    plan = Plan.model_validate_json(order.plan)
    try:
        work = workload(plan, order.model, order.nonce)
        generator = Generator(plan, work, order.target, order.secrets, emit)
    except Fatal as error:
        emit(Failed(message=str(error), exit_code=error.exit_code))
    else:
        await loop.connect_read_pipe(lambda: _Commands(generator), commands)
        # A collection would stop the clock for everything in flight; nothing here is freed by one anyway.
        gc.collect()
        gc.freeze()
        gc.disable()
        await generator.run()
    transport.close()
    await output.closed.wait()


def main() -> int:
    """Entry point."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the conducting process decides what Ctrl-C means
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    commands = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing printed by mistake may break the frames
    order = _read_order(commands)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_generate(order, out, commands))
    return 0


if __name__ == "__main__":
    sys.exit(main())
