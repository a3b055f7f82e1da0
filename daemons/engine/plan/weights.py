"""How much a model's weights weigh, read from the headers of its safetensors files: nothing is loaded."""

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

_LONGEST_HEADER = 100_000_000
_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F4": 4,
}


def weights_in(folder: Path) -> int:
    """Bytes of all tensors in the safetensors files of `folder`.

    Raises:
        Fatal: there are none, or one is damaged.
    """
    try:
        return sum(tensor_bytes(path) for path in weight_files(folder))
    except OSError as error:
        raise Fatal(describe_os_error(error, "read the weights"), EXIT_CONFIG) from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: those of the index, or every safetensors file.

    Raises:
        Fatal: there are none, or one that the index names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            raise Fatal(f"{folder} lacks {', '.join(missing)}: download the model again", EXIT_CONFIG)
        return [folder / name for name in named]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise Fatal(f"{folder} holds no safetensors files", EXIT_CONFIG)
    return found


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in one file (format: eight bytes of length, a JSON header, the data).

    Raises:
        Fatal: the file is shorter than its header says, or is no safetensors file.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= length <= _LONGEST_HEADER:
            raise Fatal(f"{path} is no safetensors file: download it again", EXIT_CONFIG)
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise Fatal(f"{path} is damaged: download it again", EXIT_CONFIG) from None
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    end = max((entry["data_offsets"][1] for entry in tensors), default=0)
    if path.stat().st_size < 8 + length + end:
        raise Fatal(f"{path} is cut off: download it again", EXIT_CONFIG)
    return sum(size_of(entry["dtype"], entry["shape"]) for entry in tensors)


def size_of(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor, its type as safetensors names it."""
    return _BITS.get(dtype, 16) * math.prod(shape) // 8
