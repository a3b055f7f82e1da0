"""Readers of public workload traces.

Formats: BurstGPT (CSV, arXiv:2401.17644), Azure LLM inference traces 2023 and 2024 (CSV), Mooncake (JSON
lines with prefix hashes, arXiv:2407.00079), ShareGPT (JSON conversations).
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec

from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

_HEAD = 4096
"""Characters that show a trace's format."""
MOST_TOKENS = 10_000_000
"""More than any model's context: a length above it is an error in the file."""
MOONCAKE_BLOCK = 512
"""Tokens a hash of a Mooncake trace stands for."""
Format = Literal["burstgpt", "azure", "mooncake", "sharegpt"]


class Row(msgspec.Struct, frozen=True):
    """One recorded request: `at` seconds from the trace's beginning, lengths in tokens."""

    at: float
    type: str
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int | str, ...] = ()
    """Names of the leading prompt blocks; equal names mean equal text."""


class Conversation(msgspec.Struct, frozen=True):
    """Recorded turns of (what the user said, what the assistant answered)."""

    turns: tuple[tuple[str, str], ...]


class TraceFile(msgspec.Struct, frozen=True):
    """What a trace holds: rows with times, or conversations without; never both."""

    format: Format
    rows: list[Row] = []
    conversations: list[Conversation] = []
    skipped: int = 0
    """Recorded failures (no answer) and entries without a user's turn: they cannot be replayed."""


def read_trace(path: Path, format_: Literal["auto"] | Format, limit: int) -> TraceFile:
    """Read at most `limit` requests or conversations of the trace at `path`, and no more than that takes.

    Raises:
        Fatal: the file cannot be read, or is in none of the formats; with the line where it breaks.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return parse_trace(file, format_, limit)
    except UnicodeDecodeError:
        raise Fatal(f"{path}: expected text in UTF-8", EXIT_CONFIG) from None
    except OSError as error:
        raise Fatal(describe_os_error(error, "read the trace"), EXIT_CONFIG) from None
    except ValueError as error:
        raise Fatal(f"{path}: {error}", EXIT_CONFIG) from None


def parse_trace(file: TextIO, format_: Literal["auto"] | Format, limit: int) -> TraceFile:
    """`read_trace` for a file that is open.

    Raises:
        ValueError: the text is in none of the formats, or breaks its own.
    """
    found = detect_format(file.read(_HEAD)) if format_ == "auto" else format_
    file.seek(0)
    if found == "sharegpt":
        return _sharegpt(file, limit)
    parse = _TIMED[found]
    rows: list[Row] = []
    skipped = 0
    try:
        for row in parse(file):
            if len(rows) >= limit:
                break
            if row is None:
                skipped += 1
            else:
                rows.append(row)
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from None
    if not rows:
        raise ValueError("the trace has no request that could be replayed")
    rows.sort(key=lambda row: row.at)
    first = rows[0].at
    rows = [msgspec.structs.replace(row, at=row.at - first) for row in rows]
    return TraceFile(found, rows=rows, skipped=skipped)


def detect_format(text: str) -> Format:
    """The format of a trace, by its beginning.

    Raises:
        ValueError: it is none that is known.
    """
    head = text.lstrip().splitlines()[:1]
    line = head[0] if head else ""
    if line.startswith("["):
        return "sharegpt"
    if line.startswith("{"):
        return "sharegpt" if '"conversations"' in line else "mooncake"
    names = {name.strip().lower() for name in line.split(",")}
    if {"timestamp", "request tokens", "response tokens"} <= names:
        return "burstgpt"
    if {"timestamp", "contexttokens", "generatedtokens"} <= names:
        return "azure"
    raise ValueError("not a BurstGPT, Azure, Mooncake or ShareGPT trace (name its format if it is)")


def _csv(file: TextIO, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(file)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
    missing = set(needed) - set(reader.fieldnames)
    if missing:
        raise ValueError(f"line 1: there is no column {', '.join(sorted(missing))}")
    for row in reader:
        yield reader.line_num, {k: v for k, v in row.items() if isinstance(k, str) and isinstance(v, str)}


def _at_line(line: int, make: Callable[[], Row]) -> Row | None:
    try:
        row = make()
    except (KeyError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise ValueError(f"line {line}: {error}") from None
    if not isfinite(row.at) or max(row.prompt_tokens, row.output_tokens) > MOST_TOKENS:
        raise ValueError(f"line {line}: a time or a length that cannot be")
    return row if row.prompt_tokens > 0 and row.output_tokens > 0 else None


def _burstgpt(file: TextIO) -> Iterator[Row | None]:
    for line, row in _csv(file, ("timestamp", "request tokens", "response tokens")):
        yield _at_line(
            line,
            lambda row=row: Row(  # type: ignore[misc]
                float(row["timestamp"]),
                row.get("log type", "burstgpt").strip().lower().replace(" ", "-") or "burstgpt",
                int(float(row["request tokens"])),
                int(float(row["response tokens"])),
            ),
        )


def _azure(file: TextIO) -> Iterator[Row | None]:
    for line, row in _csv(file, ("timestamp", "contexttokens", "generatedtokens")):
        yield _at_line(
            line,
            lambda row=row: Row(  # type: ignore[misc]
                _instant(row["timestamp"]), "azure", int(row["contexttokens"]), int(row["generatedtokens"])
            ),
        )


def _instant(text: str) -> float:
    parsed = datetime.fromisoformat(text.strip())
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int | str, ...] = ()


def _mooncake(file: TextIO) -> Iterator[Row | None]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _at_line(number, lambda line=line: _mooncake_row(decoder.decode(line)))  # type: ignore[misc]


def _mooncake_row(row: _MooncakeRow) -> Row:
    return Row(row.timestamp / 1000, "mooncake", row.input_length, row.output_length, row.hash_ids)


_TIMED: dict[str, Callable[[TextIO], Iterator[Row | None]]] = {
    "burstgpt": _burstgpt,
    "azure": _azure,
    "mooncake": _mooncake,
}


def _sharegpt(file: TextIO, limit: int) -> TraceFile:
    conversations: list[Conversation] = []
    skipped = 0
    try:
        for raw in _entries(file):
            if len(conversations) >= limit:
                break
            entry = msgspec.json.decode(raw)
            turns = tuple(_turns(entry.get("conversations") if isinstance(entry, dict) else None))
            if turns:
                conversations.append(Conversation(turns))
            else:
                skipped += 1
    except msgspec.MsgspecError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not conversations:
        raise ValueError("the trace has no conversation that could be replayed")
    return TraceFile("sharegpt", conversations=conversations, skipped=skipped)


def _entries(file: TextIO) -> Iterable[Any]:
    """The entries of a list, undecoded, or of JSON lines."""
    beginning = file.read(_HEAD)
    file.seek(0)
    if beginning.lstrip().startswith("["):
        return msgspec.json.decode(file.read(), type=list[msgspec.Raw])
    return (line for line in file if line.strip())


def _turns(messages: object) -> Iterable[tuple[str, str]]:
    asked: str | None = None
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        who, said = message.get("from", message.get("role")), message.get("value", message.get("content"))
        if not isinstance(said, str) or not said.strip():
            continue
        if who in {"human", "user"}:
            asked = said
        elif who in {"gpt", "chatgpt", "assistant", "bard", "bing"} and asked is not None:
            yield asked, said
            asked = None
