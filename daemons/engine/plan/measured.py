"""What vLLM said of its memory when it started, kept so that the next plan is not an estimate."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from daemons.engine.plan.memory import Measured
from daemons.runtime.errors import describe_os_error

log = structlog.get_logger()

FILE = "measured.json"


class Subject(msgspec.Struct, frozen=True):
    """What was started: two that are equal need the same memory."""

    model: str
    release: str
    gpu: str
    tensor_parallel: int
    max_num_seqs: int


class Measurement(msgspec.Struct, frozen=True):
    """Bytes of one GPU, as in `Measured`, of one start."""

    subject: Subject
    weights: int
    overhead: int

    @property
    def bytes_of_gpu(self) -> Measured:
        """For `ledger`."""
        return Measured(self.weights, self.overhead)


def read(folder: Path) -> list[Measurement]:
    """The measurements in `folder`, newest last; none where the file is absent, unreadable or damaged."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=list[Measurement])
    except (OSError, msgspec.MsgspecError):
        return []


def keep(folder: Path, new: Measurement) -> None:
    """Add `new` to the measurements in `folder`, in the place of an older one of the same."""
    kept = [old for old in read(folder) if old.subject != new.subject]
    part = folder / f"{FILE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        part.write_bytes(msgspec.json.format(msgspec.json.encode([*kept, new]), indent=1))
        part.replace(folder / FILE)
    except OSError as error:
        log.warning("the measurement is not kept", reason=describe_os_error(error, "write"))


def find(measurements: Iterable[Measurement], subject: Subject) -> Measured | None:
    """What was measured of an equal one."""
    return next((one.bytes_of_gpu for one in measurements if one.subject == subject), None)
