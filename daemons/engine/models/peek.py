"""Shape and weight of a hub model without its weights: ``config.json`` and the headers of its files."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import HfApi, errors, hf_hub_download

from daemons.engine.models.hub import Hub, explained
from daemons.engine.plan.shape import Shape, shape_of
from daemons.engine.plan.weights import size_of
from daemons.runtime.errors import EXIT_CONFIG, Fatal

_AT_ONCE = 8


def peek(hub: Hub, repository: str, revision: str | None) -> tuple[Shape, int]:
    """The shape of `repository`, and the bytes of its weights.

    Headers are read by range requests. Older formats have none: there the size of the files counts.

    Raises:
        Fatal: one line that says what to do.
    """
    commit, files = hub.listing(repository, revision)
    with explained(repository, commit):
        shape = _shape(hub, repository, commit)
        weights = [file for file in files if file.name.endswith(".safetensors")]
        if not weights:
            return shape, sum(file.size for file in files if not file.is_text)
        api = HfApi(endpoint=hub.endpoint)

        def header(name: str) -> int:
            try:
                found = api.parse_safetensors_file_metadata(
                    repository, name, revision=commit, token=hub.secret()
                )
            except errors.SafetensorsParsingError:
                raise Fatal(f"{repository}: {name} is no safetensors file", EXIT_CONFIG) from None
            return sum(size_of(tensor.dtype, tensor.shape) for tensor in found.tensors.values())

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return shape, sum(pool.map(header, [file.name for file in weights]))


def _shape(hub: Hub, repository: str, commit: str) -> Shape:
    with tempfile.TemporaryDirectory(prefix="llm-peek-") as folder:
        try:
            path = hf_hub_download(
                repository,
                "config.json",
                revision=commit,
                local_dir=folder,
                endpoint=hub.endpoint,
                token=hub.secret(),
            )
            return shape_of(json.loads(Path(path).read_text(encoding="utf-8")))
        except errors.RemoteEntryNotFoundError:
            raise Fatal(
                f"{repository} has no config.json: it is no model vLLM could serve", EXIT_CONFIG
            ) from None
        except (ValueError, KeyError):
            raise Fatal(
                f"the config.json of {repository} describes no decoder-only transformer", EXIT_CONFIG
            ) from None
