"""What the error that an engine puts into a stream is called.

Never compiled: mypyc leaves of a field's type only a class, and msgspec would decode nothing.
"""

import re

import msgspec

# Words of a vocabulary. A message may quote the prompt or the answer, which nobody may find in a log.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class _Error(msgspec.Struct):
    type: str | None = None
    code: int | str | None = None


class _Event(msgspec.Struct):
    error: _Error | None = None
    code: int | str | None = None


def error_name(event: bytes) -> str:
    """Type and code in an error event of any of the APIs."""
    _, _, data = event.partition(b"data:")
    try:
        told = msgspec.json.decode(data, type=_Event)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        told = _Event()
    words = (told.error.type, told.error.code) if told.error else (None, told.code)
    known = [str(word) for word in words if word is not None and _WORD.fullmatch(str(word))]
    return f"the engine sent an error: {' '.join(known) or 'no type, no code'}; its own log has more"
