"""Run in place of an engine, inside its unit's sandbox: tries what an engine must not be able to do."""

import errno
import json
import os
import socket
import sys
from collections.abc import Callable


def attempt(action: Callable[[], object]) -> str:
    """``ok``, or the name of the error."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


def opened(path: str) -> str:
    """What opening a device or file for reading gives."""
    return attempt(lambda: os.close(os.open(path, os.O_RDONLY)))


def written(path: str) -> str:
    """What writing a file gives."""
    return attempt(lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)))


def connected(host: str, port: int) -> str:
    """What a TCP connection gives."""
    return attempt(lambda: socket.create_connection((host, port), timeout=2).close())


def main(outside: str) -> None:
    """Print what was possible."""
    found = {
        "gpu0": opened("/dev/nvidia0"),
        "gpu1": opened("/dev/nvidia1"),
        "outside": connected(outside, 22),
        "keys": opened("/etc/llm/keys.d/team-a.yaml"),
        "credentials": opened("/etc/llm/credentials/hf-token"),
        "etc": written("/etc/llm/engines/mine"),
        "models": written("/var/lib/llm/models/mine"),
        "other cache": written("/var/cache/llm/engines/tiny-a/mine"),
        "own cache": written(f"{os.environ['CACHE_DIRECTORY']}/mine"),
        "own runtime": written(f"{os.environ['RUNTIME_DIRECTORY']}/mine"),
    }
    print("PROBE", json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
