"""Tries an all-reduce over an engine's GPUs: what the driver claims of peer access is not always so."""

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("all_reduce.py")
_WRONG = 3
_WITHIN_SECONDS = 180.0
"""Each rank ends itself 30 s into the all-reduce; before that torch is imported and CUDA started."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    Attributes:
        worked: whether the sum arrived; None when it could not be tried.
        said: how long it took, or what went wrong.
    """

    worked: bool | None
    said: str


def try_all_reduce(vllm: str, ranks: int, environment: Mapping[str, str]) -> Outcome:
    """An all-reduce over `ranks` processes, one on each GPU that `environment` shows.

    Args:
        vllm: vLLM's program; the Python beside it has torch.
        ranks: processes.
        environment: theirs, whole.
    """
    python = Path(vllm).with_name("python")
    if not python.exists():
        return Outcome(None, f"there is no {python}")
    with tempfile.TemporaryDirectory(prefix="llm-peers-") as folder:
        outputs = [Path(folder, f"rank{rank}") for rank in range(ranks)]
        running: list[subprocess.Popen[bytes]] = []
        try:
            for rank, output in enumerate(outputs):
                # -P: what lies beside the script is not for torch to import.
                arguments = [str(python), "-P", str(_SCRIPT), str(rank), str(ranks), f"{folder}/rendezvous"]
                with output.open("wb") as file:
                    running.append(
                        subprocess.Popen(
                            arguments,
                            stdin=subprocess.DEVNULL,
                            stdout=file,
                            stderr=subprocess.STDOUT,
                            env=dict(environment),
                        )
                    )
            statuses = _wait(running)
        except OSError as error:
            return Outcome(None, f"{python}: {error.strerror}")
        finally:
            _end(running)
        return _outcome(statuses, [path.read_text(errors="replace") for path in outputs])


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Exit statuses; None for a rank that did not end in time."""
    deadline = time.monotonic() + _WITHIN_SECONDS
    for rank in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, deadline - time.monotonic()))
    return [rank.returncode for rank in running]


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in running:
        rank.kill()
    for rank in running:
        # A rank in a wedged driver cannot be waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.wait(5)


def _outcome(statuses: Sequence[int | None], outputs: Sequence[str]) -> Outcome:
    last = [(output.strip().splitlines() or ["nothing was said"])[-1] for output in outputs]
    if all(status == 0 for status in statuses):
        return Outcome(True, last[0])
    for status, said in zip(statuses, last, strict=True):
        if status == _WRONG:
            return Outcome(False, said)
    if None in statuses or -signal.SIGALRM in statuses:
        return Outcome(False, "an all-reduce did not end in 30 s")
    failed = next(said for status, said in zip(statuses, last, strict=True) if status)
    if "NCCL" in failed or "DistBackendError" in failed:
        return Outcome(False, failed)
    return Outcome(None, failed)
