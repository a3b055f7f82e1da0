"""What a worker tells the exporter once a collection: the data, and apart from it how reading went."""

from enum import StrEnum

import msgspec

from daemons.gpu_exporter.packing import Packed


class NvmlState(StrEnum):
    """Whether NVML answers: a closed vocabulary, one series each."""

    OK = "ok"
    NO_LIBRARY = "no_library"
    NO_DRIVER = "no_driver"
    VERSION_MISMATCH = "version_mismatch"
    NO_PERMISSION = "no_permission"
    ERROR = "error"
    STARTING = "starting"
    HUNG = "hung"
    RELEASED = "released"


class GpuStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that NVML lists, whether it answers or not."""

    index: int
    uuid: str = ""
    """Empty when the GPU does not even tell its identity."""
    pci: str = ""
    """``00000000:3b:00.0``, lower case."""
    name: str = ""
    fault: str = ""
    """Why it does not answer (``lost``, ``reset_required``, ...); empty when it does."""
    dcgm_labels: tuple[tuple[str, str], ...] = ()
    """The labels of its series under the names of dcgm-exporter; empty where these are not served."""


class XidEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One XID error, from whichever source.

    Attributes:
        at: when, in seconds since the epoch.
        pci: address of the GPU as in `GpuStatus`.
        xid: the code.
    """

    at: float
    pci: str
    xid: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One collection. Immutable; nothing in it is changed after it was taken.

    Attributes:
        state, detail: whether NVML answered, and what it said when not.
        taken_at: when the collection began, in seconds since the epoch.
        taken_monotonic: the same on the system-wide monotonic clock (CLOCK_MONOTONIC).
        duration: seconds it took.
        gpus: what NVML lists.
        body: the GPU series, rendered.
        xids: XID events since the last snapshot.
        xid_events: whether NVML delivers XID events for at least one GPU.
    """

    state: NvmlState
    detail: str = ""
    taken_at: float = 0.0
    taken_monotonic: float = 0.0
    duration: float = 0.0
    gpus: tuple[GpuStatus, ...] = ()
    body: Packed = Packed()
    xids: tuple[XidEvent, ...] = ()
    xid_events: bool = False


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Snapshot)
LENGTH_BYTES = 4
MAX_BYTES = 64 << 20


def encode(snapshot: Snapshot) -> bytes:
    """`snapshot` as a frame: its length in 4 bytes, big-endian, then MessagePack."""
    payload = _encoder.encode(snapshot)
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def payload_length(header: bytes) -> int:
    """The length of the payload that follows `header`.

    Raises:
        ValueError: it is beyond all reason, so the stream is out of step.
    """
    length = int.from_bytes(header, "big")
    if length > MAX_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return length


def decode(payload: bytes) -> Snapshot:
    """A snapshot from the payload of a frame.

    Raises:
        ValueError: the bytes are no snapshot.
    """
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a snapshot: {error}") from error
