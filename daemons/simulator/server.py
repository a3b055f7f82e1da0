"""One simulated engine: built from the options, started, served, ended as vLLM ends."""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from aiohttp import web

from daemons.runtime.errors import Fatal
from daemons.runtime.sockets import listen_unix
from daemons.simulator import startup
from daemons.simulator.faults import Faults
from daemons.simulator.http.app import build
from daemons.simulator.http.service import Identity, Service
from daemons.simulator.metrics.exposition import MetricsPage
from daemons.simulator.metrics.releases import release
from daemons.simulator.model.blocks import BlockPool
from daemons.simulator.model.engine import Engine, QueueLimits
from daemons.simulator.model.scheduler import Limits, Scheduler
from daemons.simulator.model.timing import LinearCost
from daemons.simulator.options import VLLM_VERSION
from daemons.simulator.runner import DEATH, Runner

_GIB = 2**30
_DEFAULT_BLOCK = 16
_BACKLOG = 2048
_DEATH_GRACE = 0.5
_FLUSH = 1.0
"""Seconds that finished answers have to reach their clients."""


async def serve(options: argparse.Namespace) -> int:
    """Run one engine until SIGTERM, SIGINT or its death; returns the exit status, which is 0 in each case.

    Raises:
        Fatal: the start fails; vLLM's exit status is 1 then.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = startup.Log()
    startup.greet(log, options.model, _shown(options))
    sock = _listen(options)
    with contextlib.closing(sock):
        startup.check_model(options.model)
        max_model_len = startup.context_length(options.model, options.max_model_len)
        memory = _memory(options, max_model_len)
        loading = startup.load(
            log,
            options.model,
            memory,
            max_model_len,
            options.sim_startup_seconds,
            eager=options.enforce_eager,
        )
        if not await _unless(stop, loading):
            return 0
        server = Server(options, memory, max_model_len, log)
        return await server.run(sock, stop)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` was done before `stop` was set."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    done = working.done()
    for task in (working, stopping):
        task.cancel()
    await asyncio.gather(working, stopping, return_exceptions=True)
    return done


def _listen(options: argparse.Namespace) -> socket.socket:
    # vLLM binds before it loads, so a port in use fails early.
    if options.uds is not None:
        return listen_unix(Path(options.uds), mode=0o777 & ~_umask())
    host = options.host or "0.0.0.0"  # noqa: S104 - vLLM's default
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, options.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        # The last line of vLLM's traceback, which supervisors look for.
        raise Fatal(f"OSError: [Errno {error.errno}] {error.strerror}") from None
    sock.setblocking(False)
    return sock


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _memory(options: argparse.Namespace, max_model_len: int) -> startup.Memory:
    return startup.plan_memory(
        max_model_len=max_model_len,
        block_size=options.block_size or _DEFAULT_BLOCK,
        kv_bytes=options.sim_kv_bytes or startup.kv_bytes_per_token(options.model),
        kv_cache_bytes=options.kv_cache_memory_bytes,
        blocks_override=options.num_gpu_blocks_override,
        gpu_bytes=options.sim_gpu_gib * _GIB,
        utilization=options.gpu_memory_utilization,
        weight_bytes=options.sim_weights_gib * _GIB,
        gpus=options.tensor_parallel_size,
    )


def _shown(options: argparse.Namespace) -> dict[str, object]:
    """The options as logged; keys never are."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(options).items()
        if value not in (None, [], False) and key not in ("api_key", "ignored", "sim_fault")
    }


class Server:
    """The engine, its HTTP face, and their end."""

    def __init__(
        self, options: argparse.Namespace, memory: startup.Memory, max_model_len: int, log: startup.Log
    ) -> None:
        self._options = options
        self._log = log
        self.faults = Faults()
        self.engine = _engine(options, memory)
        self.runner = Runner(self.engine, self.faults)
        identity = Identity(
            names=tuple(options.served_model_name),
            root=options.model,
            version=VLLM_VERSION,
            max_model_len=max_model_len,
            answer_tokens=options.sim_answer_tokens,
            seed=options.sim_seed,
            keep_alive=options.sse_keep_alive_interval,
            request_ids=options.enable_request_id_headers,
            tool_choice_auto=options.enable_auto_tool_choice,
            prompt_details=options.enable_prompt_tokens_details,
        )
        self.service = Service(identity, self.engine, self.runner, self.faults)
        labels = {"model_name": identity.names[0]}
        config = _cache_config(options, memory, max_model_len)
        self._page = MetricsPage(
            release(options.sim_metrics, max_model_len), self.engine, labels, config, time.time
        )

    async def run(self, sock: socket.socket, stop: asyncio.Event) -> int:
        """Serve on `sock`, which listens already, until `stop` or death."""
        app = build(
            self.service,
            self._page,
            self._options.api_key,
            pooling=self._options.runner == "pooling",
            fault_admin=self._options.sim_faults,
        )
        # A client that goes away must cancel its handler, which aborts its request within a step.
        serving = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=_FLUSH
        )
        await serving.setup()
        site = web.SockSite(serving, sock, backlog=_BACKLOG)
        await site.start()
        self._announce(sock)
        stepping = asyncio.create_task(self.runner.run())
        for fault in self._options.sim_fault:
            self.faults.schedule(fault, asyncio.get_running_loop())
        try:
            await _either(stop, self.runner.dead)
            await self._end(site)
        finally:
            self.runner.stop()
            await asyncio.gather(stepping, return_exceptions=True)
            await serving.cleanup()
        return 0

    def _announce(self, sock: socket.socket) -> None:
        name = sock.getsockname()
        host = self._options.host or "0.0.0.0"  # noqa: S104 - how vLLM shows its default
        where = f"unix:{name}" if isinstance(name, str) else f"http://{host}:{name[1]}"
        self._log.line("APIServer", "entry.py:140", f"Starting vLLM server on {where}")
        self._log.plain(f"INFO:     Started server process [{os.getpid()}]")
        self._log.plain("INFO:     Waiting for application startup.")
        self._log.plain("INFO:     Application startup complete.")

    async def _end(self, site: web.SockSite) -> None:
        if self.runner.dead.is_set():
            self._log.line("APIServer", "async_llm.py:906", f"EngineDeadError: {DEATH}", "ERROR")
            # The error events are on their way; vLLM took 0.6 s to leave.
            await asyncio.sleep(_DEATH_GRACE)
            return
        timeout = self._options.shutdown_timeout
        mode = "drain" if timeout else "abort"
        text = f"[shutdown] API server: stopping engine client mode={mode} timeout={timeout:g}s"
        self._log.line("APIServer", "launcher.py:265", text)
        if timeout:
            await self._drain(timeout)
        await site.stop()
        self.runner.stop()
        await self._wait_for_clients(None)

    async def _drain(self, seconds: float) -> None:
        self.service.draining = True
        await self._wait_for_clients(seconds)

    async def _wait_for_clients(self, seconds: float | None) -> None:
        """Until no request is in flight: finished while the engine runs, given up by their clients after."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.runner.idle.wait()


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in (one, other)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _engine(options: argparse.Namespace, memory: startup.Memory) -> Engine:
    limits = Limits(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens or 2048,
        block_size=memory.block_size,
        prefix_caching=options.enable_prefix_caching,
    )
    cost = LinearCost(
        inter_token=options.sim_inter_token_ms / 1e3,
        per_sequence=options.sim_sequence_us / 1e6,
        prefill_rate=options.sim_prefill_rate,
        jitter=options.sim_jitter,
        random=random.Random(options.sim_seed),  # noqa: S311 - jitter
    )
    queue = QueueLimits(options.max_num_queued_reqs, options.max_num_queued_tokens)
    return Engine(Scheduler(limits, BlockPool(memory.blocks)), cost, queue)


def _cache_config(options: argparse.Namespace, memory: startup.Memory, max_model_len: int) -> dict[str, str]:
    """The labels of ``cache_config_info`` that depend on the options, in vLLM's spelling."""
    return {
        "block_size": str(memory.block_size),
        "enable_prefix_caching": str(options.enable_prefix_caching),
        "gpu_memory_utilization": str(options.gpu_memory_utilization),
        "kv_cache_max_concurrency": str(memory.tokens / max_model_len),
        "kv_cache_memory_bytes": str(options.kv_cache_memory_bytes),
        "kv_cache_size_tokens": str(memory.tokens),
        "num_gpu_blocks": str(memory.blocks),
        "num_gpu_blocks_override": str(options.num_gpu_blocks_override),
        "user_specified_block_size": str(options.block_size is not None),
    }
