"""The seam to NVML: opening it, asking a GPU, and what its errors mean.

Collectors never see an ``NVMLError``. A call that this GPU or driver does not support yields None; any other
failed call yields None and is counted; a GPU that is gone raises `GpuGone`; a driver that is gone raises
`NvmlGone`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pynvml

from daemons.gpu_exporter.snapshot import NvmlState

T = TypeVar("T")

_UNSUPPORTED = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_DEPRECATED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)
# The bindings raise "success" where a list of process samples is empty.
_NOTHING = frozenset({pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS})
_GPU_GONE = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "reset_required",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "insufficient_power",
    pynvml.NVML_ERROR_IRQ_ISSUE: "irq_issue",
}
_NVML_GONE = {
    pynvml.NVML_ERROR_UNINITIALIZED: NvmlState.ERROR,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: NvmlState.NO_DRIVER,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NvmlState.NO_LIBRARY,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: NvmlState.VERSION_MISMATCH,
}
_OPENING = _NVML_GONE | {pynvml.NVML_ERROR_NO_PERMISSION: NvmlState.NO_PERMISSION}


class NvmlGone(Exception):
    """NVML as a whole does not answer.

    Attributes:
        state: what is the matter.
    """

    def __init__(self, state: NvmlState, detail: str) -> None:
        super().__init__(detail)
        self.state = state


class GpuGone(Exception):
    """One GPU does not answer any more; the message is the fault, one word."""


@dataclass(slots=True)
class Gpu:
    """A GPU and what asking it brought up.

    Attributes:
        handle: NVML's own; valid until NVML is closed.
        errors: names of the errors of failed calls since last emptied.
    """

    handle: Any
    index: int
    uuid: str
    pci: str = ""
    name: str = ""
    errors: list[str] = field(default_factory=list)

    def ask(self, call: Callable[..., T], *args: Any, nothing: T | None = None) -> T | None:
        """``call(handle, *args)``; None when unsupported or failed, `nothing` when there is nothing to tell.

        Raises:
            GpuGone: the GPU is lost or must be reset.
            NvmlGone: the driver is gone.
        """
        return self.attempt(call, self.handle, *args, nothing=nothing)

    def attempt(self, call: Callable[..., T], *args: Any, nothing: T | None = None) -> T | None:
        """Like `ask`, for calls that do not take this GPU's handle."""
        try:
            return call(*args)
        except pynvml.NVMLError as error:
            if error.value in _NOTHING:
                return nothing
            self._failed(error.value)
        except UnicodeDecodeError:
            self.errors.append("not_text")
        return None

    def fields(self, wanted: Sequence[int | tuple[int, int]]) -> list[int | float | None]:
        """Values of ``NVML_FI_*`` fields, each an id or an (id, scope), in one call; None where none is."""
        values = self.ask(pynvml.nvmlDeviceGetFieldValues, list(wanted))
        if values is None:
            return [None] * len(wanted)
        return [self._field(value) for value in values]

    def _field(self, value: Any) -> int | float | None:
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            # A field the driver does not know comes back as an invalid argument, not as unsupported.
            if value.nvmlReturn != pynvml.NVML_ERROR_INVALID_ARGUMENT:
                self._failed(value.nvmlReturn)
            return None
        attribute = _VALUE_TYPES.get(value.valueType)
        if attribute is None:
            self.errors.append("unknown_type")
            return None
        number: int | float = getattr(value.value, attribute)
        return number

    def _failed(self, code: int) -> None:
        if code in _UNSUPPORTED:
            return
        if code in _GPU_GONE:
            raise GpuGone(_GPU_GONE[code])
        if code in _NVML_GONE:
            raise NvmlGone(_NVML_GONE[code], describe(code))
        self.errors.append(error_name(code))


_VALUE_TYPES = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
}

_NAMES: dict[int, str] = {
    value: name.removeprefix("NVML_ERROR_").lower()
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_")
}


def error_name(code: int) -> str:
    """``timeout`` for ``NVML_ERROR_TIMEOUT``; a bounded vocabulary, so ``other`` for codes without a name."""
    return _NAMES.get(code, "other")


def describe(code: int) -> str:
    """An error in words, without asking NVML, which may be the one that is broken."""
    return f"NVML error {code} ({error_name(code).replace('_', ' ')})"


class Nvml:
    """An open NVML. Open it by `open_nvml`; close it to let go of every handle."""

    def driver_version(self) -> str | None:
        """For example ``550.54.15``."""
        return _optional(pynvml.nvmlSystemGetDriverVersion)

    def nvml_version(self) -> str | None:
        """For example ``12.550.54.15``."""
        return _optional(pynvml.nvmlSystemGetNVMLVersion)

    def cuda_version(self) -> str | None:
        """The newest CUDA the driver supports, for example ``12.4``."""
        version = _optional(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        return None if version is None else f"{version // 1000}.{version % 1000 // 10}"

    def count(self) -> int:
        """How many GPUs NVML lists, lost ones included.

        Raises:
            NvmlGone: NVML does not answer.
        """
        try:
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            raise _gone(error.value) from None

    def open_gpu(self, index: int) -> Gpu:
        """The GPU at `index` with its identity.

        Raises:
            GpuGone: it does not answer.
            NvmlGone: NVML does not answer.
        """
        gpu = Gpu(handle=None, index=index, uuid="")
        gpu.handle = gpu.attempt(pynvml.nvmlDeviceGetHandleByIndex, index)
        if gpu.handle is None:
            raise GpuGone("no_handle")
        gpu.uuid = gpu.ask(pynvml.nvmlDeviceGetUUID) or ""
        if not gpu.uuid:
            raise GpuGone("no_uuid")
        gpu.name = gpu.ask(pynvml.nvmlDeviceGetName) or ""
        pci = gpu.ask(pynvml.nvmlDeviceGetPciInfo)
        gpu.pci = pci_address(pci.busId) if pci is not None else ""
        gpu.errors.clear()
        return gpu

    def close(self) -> None:
        """Let go of everything; never raises."""
        _optional(pynvml.nvmlShutdown)


def open_nvml() -> Nvml:
    """Load and initialise NVML.

    Raises:
        NvmlGone: with the reason; no library, no driver and no permission are told apart.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _gone(error.value) from None
    return Nvml()


def _gone(code: int) -> NvmlGone:
    return NvmlGone(_OPENING.get(code, NvmlState.ERROR), describe(code))


def _optional(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def pci_address(text: str | bytes) -> str:
    """A bus id of NVML as it stands in `GpuStatus`."""
    return (text.decode("ascii", "replace") if isinstance(text, bytes) else text).lower()
