"""What is written down of a hung engine before it is killed."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from daemons.engine.processes import EngineProcess, ProcessInfo
from daemons.runtime.errors import describe_os_error
from daemons.runtime.logs import redact
from daemons.runtime.notify import child_environment

log = structlog.get_logger()

KEPT = 10
"""Post-mortems that are kept; the oldest goes first."""

_TOOL_SECONDS = 5.0
_ABORT_SECONDS = 0.5


async def write_post_mortem(
    folder: Path, reason: str, process: EngineProcess, vllm: str, exporter: str
) -> Path | None:
    """Write one file on why `process` is about to be killed; returns it, or None when it cannot be written.

    Args:
        folder: where post-mortems lie.
        reason: the verdict.
        process: the engine, still there.
        vllm: its program; py-spy is looked for beside it, and then on the path.
        exporter: what the GPU exporter says of its GPUs, XID errors among it.
    """
    members = await asyncio.to_thread(process.members)
    last_lines = list(process.tail)
    pages = [
        ("verdict", reason),
        ("processes", await asyncio.to_thread(_describe, members)),
        ("stacks", await _stacks(members, process, vllm)),
        ("GPUs", await _tool("nvidia-smi", "-q")),
        ("GPU exporter", exporter or "it says nothing of this engine's GPUs"),
        (
            "kernel messages of the driver",
            await _tool("journalctl", "-k", "--no-pager", "-n", "50", "-g", "NVRM|Xid"),
        ),
        ("last log lines", "\n".join(last_lines)),
    ]
    text = "".join(f"==== {title}\n{redact(body)}\n\n" for title, body in pages)
    return await asyncio.to_thread(_store, folder, text)


def _store(folder: Path, text: str) -> Path | None:
    path = folder / f"post-mortem-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o640)
        for old in sorted(folder.glob("post-mortem-*.txt"))[:-KEPT]:
            old.unlink()
    except OSError as error:
        log.error("no post-mortem", reason=describe_os_error(error, "write the post-mortem"))
        return None
    return path


def _describe(members: Sequence[ProcessInfo]) -> str:
    lines = []
    for info in members:
        waits_in = ""
        with contextlib.suppress(OSError):
            waits_in = Path(f"/proc/{info.pid}/wchan").read_text(encoding="ascii", errors="replace").strip()
        lines.append(f"{info.pid} (parent {info.parent}) {info.name}: state {info.state} {waits_in}".rstrip())
    return "\n".join(lines) or "none is left"


async def _stacks(members: Sequence[ProcessInfo], process: EngineProcess, vllm: str) -> str:
    beside = Path(vllm).with_name("py-spy")
    program = str(beside) if await asyncio.to_thread(beside.is_file) else "py-spy"
    # A stopped process cannot be paused by py-spy: without --nonblocking it would wait for ever.
    dumps = await asyncio.gather(
        *(_tool(program, "dump", "--nonblocking", "--pid", str(info.pid)) for info in members)
    )
    shown = [f"---- {info.pid} {info.name}\n{dump}" for info, dump in zip(members, dumps, strict=True)]
    unread = [info.pid for info, dump in zip(members, dumps, strict=True) if "Thread" not in dump]
    return "\n".join(shown) + await _own_stacks(unread, process)


async def _own_stacks(pids: Sequence[int], process: EngineProcess) -> str:
    """What processes write of their own stacks when they are aborted (PYTHONFAULTHANDLER).

    Where kernel.yama.ptrace_scope is not 0, py-spy may only read its own descendants.
    """
    if not pids:
        return ""
    process.tail.clear()
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGABRT)
    await asyncio.sleep(_ABORT_SECONDS)
    return "\n---- as they wrote it when they were aborted\n" + "\n".join(process.tail)


async def _tool(program: str, *arguments: str) -> str:
    """The output of a program, or why there is none."""
    try:
        tool = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            env=child_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        return describe_os_error(error, f"run {program}")
    try:
        async with asyncio.timeout(_TOOL_SECONDS):
            output, _ = await tool.communicate()
    except TimeoutError:
        tool.kill()
        await tool.wait()
        return f"{program} gave no answer in {_TOOL_SECONDS:.0f} s"
    return output.decode(errors="replace").strip()
