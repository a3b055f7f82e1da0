"""Where a plan's figures come from: a folder, a downloaded model, the hub, the catalogue; and the GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from daemons.engine.gpus import NvmlInventory
from daemons.engine.models.hub import Hub
from daemons.engine.models.peek import peek
from daemons.engine.models.store import Store
from daemons.engine.peers.bus import read_bus
from daemons.engine.plan import measured
from daemons.engine.plan.catalogue import CONFIGS, PARAMETERS, weights_of
from daemons.engine.plan.memory import GIB, Measured, estimated_weights
from daemons.engine.plan.shape import Shape, read_shape, shape_of
from daemons.engine.plan.weights import weights_in
from daemons.runtime.credentials import Credentials
from daemons.runtime.errors import EXIT_CONFIG, Fatal

STATES = Path("/var/lib/llm/engines")
"""Below it each engine keeps what vLLM said of its memory."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs of a plan.

    Attributes:
        count: how many.
        memory: bytes of each, of the smallest where they differ.
        name: as NVML says it; empty for GPUs that are only imagined.
        notes: how they reach each other.
    """

    count: int
    memory: int
    name: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A model to plan for.

    Attributes:
        weights: bytes, as they are.
        names: what engines may call it.
        parameters: where they are known better than from the weights.
    """

    shape: Shape
    weights: int
    names: tuple[str, ...] = ()
    parameters: int | None = None

    def quantized(self, method: str | None) -> int:
        """Bytes of the weights under another quantization; as they are when None."""
        if method is None:
            return self.weights
        count = self.parameters or self.weights // self.shape.dtype_bytes
        return estimated_weights(self.shape, method, count)

    def measured(self, gpu: str, states: Path = STATES) -> Mapping[int, Measured]:
        """What engines of this host measured of it on such GPUs, by tensor-parallel size."""
        kept = [
            one for path in sorted(states.glob(f"*/{measured.FILE}")) for one in measured.read(path.parent)
        ]
        of_model = [one for one in kept if one.subject.model in self.names and one.subject.gpu == gpu]
        return {one.subject.tensor_parallel: one.bytes_of_gpu for one in of_model}


def gpus_here(count: int | None, gib: float | None) -> Gpus:
    """The GPUs of this host, or those that are asked for.

    Raises:
        Fatal: there are none, and not everything was given.
    """
    if count is not None and gib is not None:
        return Gpus(count, int(gib * GIB))
    inventory = NvmlInventory()
    try:
        found = inventory.gpus()
    except Fatal as error:
        raise Fatal(f"{error}; or give both --gpus and --gpu-memory", EXIT_CONFIG) from None
    if not found:
        raise Fatal("this host has no GPU: give both --gpus and --gpu-memory", EXIT_CONFIG)
    notes: list[str] = []
    if len(found) > 1:
        bus = read_bus([gpu.pci for gpu in found])
        notes = [str(link) for link in inventory.links([gpu.uuid for gpu in found])]
        notes.append(f"IOMMU {bus.iommu}; ACS {bus.acs}")
    smallest = min(gpu.memory_bytes for gpu in found)
    return Gpus(count or len(found), smallest if gib is None else int(gib * GIB), found[0].name, tuple(notes))


def from_catalogue(name: str) -> Found:
    """A model of the catalogue."""
    return Found(shape_of(CONFIGS[name]), weights_of(name), (), PARAMETERS.get(name))


@dataclass(frozen=True, slots=True)
class Sources:
    """Models of this host and of the hub."""

    models_dir: Path
    config_dir: Path

    def find(self, name: str) -> Found:
        """The model that `name` means: of the catalogue, a folder, downloaded, or on the hub.

        Raises:
            Fatal: it is none of these, or cannot be read.
        """
        return from_catalogue(name) if name in CONFIGS else self._read(name)

    def _read(self, name: str) -> Found:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return Found(read_shape(folder), weights_in(folder), (name, str(folder.absolute())))
        if name.startswith(("/", ".", "~")) or "/" not in name:
            known = ", ".join(CONFIGS)
            raise Fatal(
                f"{name} is neither a folder, nor ORGANISATION/NAME, nor one of: {known}", EXIT_CONFIG
            )
        repository, _, revision = name.partition("@")
        downloaded = Store(self.models_dir).find(repository, revision or None)
        if downloaded is not None and any(downloaded.glob("*.safetensors")):
            return Found(read_shape(downloaded), weights_in(downloaded), (repository,))
        hub = Hub(token=Credentials(self.config_dir).get("hf-token"))
        return Found(*peek(hub, repository, revision or None), (repository,))
