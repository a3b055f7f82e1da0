"""Typed settings: one definition gives validation, defaults, the schema and the documentation.

A room defines its file as a tree of `Settings` models; `load` reads a YAML file into it and reports every
fault of the file at once, each with its place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error


class Settings(BaseModel):
    """Base of every settings model: immutable, unknown keys refused, inputs never echoed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )


Place = tuple[int | str, ...]
SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a configuration file.

    Attributes:
        file: the file as it was named.
        key: dotted path of the key, list positions in brackets; empty for the file as a whole.
        expected: what would have been right, in words.
        line: 1-based line of the key, or of the closest parent that is in the file.
    """

    file: Path
    key: str
    expected: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{place}: {self.key}: {self.expected}" if self.key else f"{place}: {self.expected}"


class ConfigError(Fatal):
    """A configuration file that cannot be used; carries every fault found in it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)), EXIT_CONFIG)
        self.faults = tuple(faults)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe subset, with a key given twice refused instead of silently overwritten."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load(path: Path, model: type[SettingsT]) -> SettingsT:
    """Read `path` as YAML into `model`.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or breaks the model; with every fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        error.filename = None
        raise ConfigError([Fault(path, "", describe_os_error(error, "read it"))]) from None
    except UnicodeDecodeError:
        raise ConfigError([Fault(path, "", "expected a text file in UTF-8")]) from None
    return parse(text, path, model)


def parse(text: str, path: Path, model: type[SettingsT]) -> SettingsT:
    """`load` for text already read; `path` is only named in faults."""
    try:
        node, data = _read_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise ConfigError([Fault(path, "", f"not valid YAML: {error.problem}", line)]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Fault(path, "", f"not valid YAML: {' '.join(str(error).split())}")]) from None
    except (ValueError, TypeError, RecursionError) as error:
        # PyYAML's constructors raise these for an impossible date, a key that is a list, and deep nesting.
        raise ConfigError([Fault(path, "", f"a value cannot be read: {error}")]) from None
    if not isinstance(data, dict):
        raise ConfigError([Fault(path, "", "expected a mapping of keys to values", 1)])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(list(_faults(error, path, node, model))) from None


def _read_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    loader = _UniqueKeyLoader(text)
    try:
        node = loader.get_single_node()
        return node, {} if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _faults(
    error: ValidationError, path: Path, node: yaml.Node | None, model: type[BaseModel]
) -> Iterator[Fault]:
    for loc, expected in explain(error, model):
        yield Fault(path, _dotted(loc), expected, _line(loc, node))


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Place, str]]:
    """Each fault of a value that is no `model`: its place, and in words what would have been right."""
    items = error.errors(include_url=False, include_input=False)
    places = [item["loc"] for item in items]
    listed: set[str] = set()
    for item in items:
        loc, expected = item["loc"], item["msg"].removeprefix("Value error, ")
        if item["type"] == "too_short" and any(p != loc and p[: len(loc)] == loc for p in places):
            continue  # only because its faulty items do not count
        if item["type"] == "extra_forbidden":
            expected = _unknown_key(loc, model)
            # The same long list once is enough.
            expected = "unknown key" if expected in listed else expected
            listed.add(expected)
        elif item["type"] == "missing":
            expected = "this key is required"
        yield loc, expected


def _unknown_key(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    holder: type[BaseModel] | None = model
    for part in loc[:-1]:
        if isinstance(part, str) and holder is not None:
            field = holder.model_fields.get(part)
            holder = _model_in(field.annotation) if field else None
    if holder is None:
        return "unknown key"
    return f"unknown key; known here are: {', '.join(holder.model_fields)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model that `annotation` is or holds, bare or in ``| None`` or ``tuple[...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _dotted(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _line(loc: tuple[int | str, ...], node: yaml.Node | None) -> int | None:
    line = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
