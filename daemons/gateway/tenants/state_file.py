"""The limiter's state in a file, for the worker that comes after one that was killed."""

import asyncio
import os
import threading
from pathlib import Path

import msgspec
import structlog

from daemons.gateway.tenants.accounts import Account
from daemons.gateway.tenants.limiter import Limiter
from daemons.gateway.tenants.states import LimiterState

log = structlog.get_logger()

_SAME_BOOT_SECONDS = 30.0
_ACCOUNTS_AT_ONCE = 100

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(LimiterState).decode


class StateFile:
    """Keeps what a `Limiter` counts.

    Args:
        path: of the file.
        limiter: the limiter.
    """

    def __init__(self, path: Path, limiter: Limiter) -> None:
        self._path = path
        self._limiter = limiter
        self._failing = False
        # A write that was given up goes on in its thread.
        self._writing = threading.Lock()

    def load(self) -> None:
        """Go on from the file, if there is one that can be used."""
        try:
            state = _decode(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("limits begin anew", reason=str(error), file=str(self._path))
            return
        limiter = self._limiter
        # Between two boots the monotonic clock begins anew, and lies elsewhere beside the wall clock.
        drift = (limiter.wall() - limiter.monotonic()) - (state.wall - state.monotonic)
        # The requests of a dead worker are dead; what they had reserved stays counted.
        state = msgspec.structs.replace(state, open=[])
        limiter.restore(state, same_boot=abs(drift) < _SAME_BOOT_SECONDS)

    async def keep(self) -> None:
        """Put what the limiter counts in place of the file, at once and whole; a failure is reported, once.

        Requests come and go meanwhile, so that each account is kept as it was at its turn.
        """
        limiter = self._limiter
        state = {
            "monotonic": limiter.monotonic(),
            "wall": limiter.wall(),
            "keys": await _encoded(limiter.keys),
            "addresses": await _encoded(limiter.addresses),
        }
        await asyncio.to_thread(self._write, _encode(state))

    def _write(self, state: bytes) -> None:
        half = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with self._writing:
            try:
                fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(fd, "wb") as file:
                    file.write(state)
                half.replace(self._path)
            except OSError as error:
                if not self._failing:
                    log.warning(
                        "the state of the limits cannot be kept", reason=str(error), file=str(self._path)
                    )
                self._failing = True
            else:
                self._failing = False


async def _encoded(accounts: dict[str, Account]) -> dict[str, msgspec.Raw]:
    """`accounts` as JSON, some at a time: tens of thousands of addresses must not hold up a request."""
    found = {}
    for count, (name, account) in enumerate(list(accounts.items()), 1):
        found[name] = msgspec.Raw(_encode(account.export()))
        if count % _ACCOUNTS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return found
