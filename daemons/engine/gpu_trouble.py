"""Asks the exporter of this host whether an engine's GPUs are in trouble: then the engine is sick."""

import asyncio
import time
from collections.abc import Callable, Collection

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from daemons.engine.board import Board

XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120})
"""XID errors after which a GPU cannot be trusted (NVIDIA, "XID Errors"); those of the application are not."""

_ASK_SECONDS = 10.0
_ANSWER_SECONDS = 5.0
_FLAGS = {
    "gpu_row_remap_failure": "a memory row could not be remapped",
    "gpu_retired_pages_pending": "memory pages wait to be retired: reboot",
}


def trouble_in(exposition: str, uuids: Collection[str], since: float) -> str:
    """Why one of these GPUs cannot be trusted; empty when none is in trouble.

    Args:
        exposition: the exporter's ``/metrics``.
        uuids: the engine's GPUs.
        since: seconds since the epoch; XID errors from before are not held against them.
    """
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            uuid = sample.labels.get("uuid")
            if uuid not in uuids:
                continue
            if sample.name == "gpu_xid_last_timestamp_seconds" and sample.value >= since:
                xid = int(sample.labels.get("xid", "0"))
                if xid in XIDS:
                    return f"XID {xid} on {uuid}: see the kernel log"
            if sample.name == "gpu_recovery_action" and sample.value and sample.labels["action"] != "none":
                return f"the driver asks for {sample.labels['action']} of {uuid}"
            if sample.name in _FLAGS and sample.value:
                return f"{_FLAGS[sample.name]} ({uuid})"
    return ""


class TroubleWatch:
    """Keeps `board` told of GPU trouble; an exporter that does not answer is no trouble of the GPU's."""

    def __init__(
        self, url: str, board: Board, uuids: Collection[str], clock: Callable[[], float] = time.time
    ) -> None:
        self._url = url
        self._board = board
        self._uuids = uuids
        self._clock = clock
        self._generation = -1
        self._since = 0.0

    async def run(self) -> None:
        """Ask for ever."""
        limit = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=limit) as session:
            while True:
                await self.ask(session)
                await asyncio.sleep(_ASK_SECONDS)

    async def ask(self, session: aiohttp.ClientSession) -> None:
        """Ask once."""
        if self._generation != self._board.generation:
            # A new start of vLLM begins with a clean slate: what is still wrong shows again.
            self._generation, self._since = self._board.generation, self._clock()
        try:
            async with session.get(self._url) as answer:
                text = await answer.text()
                self._board.trouble(trouble_in(text, self._uuids, self._since))
                lines = (line for line in text.splitlines() if any(uuid in line for uuid in self._uuids))
                self._board.gpu_facts = "\n".join(lines)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return
