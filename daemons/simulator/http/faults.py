"""``/sim/faults``: the simulator's own endpoint, only with ``--sim-faults``."""

import asyncio

from aiohttp import web

from daemons.simulator.faults import Fault
from daemons.simulator.http import errors
from daemons.simulator.http.service import Service


class FaultAdmin:
    """Shows, sets and clears faults."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def show(self, _: web.Request) -> web.Response:
        """The faults in force."""
        return errors.reply([fault.model_dump() for fault in self._service.faults.list()])

    async def set(self, request: web.Request) -> web.Response:
        """Put one in force, at once or after its delay."""
        body = await self._service.read(request, Fault)
        self._service.faults.schedule(body, asyncio.get_running_loop())
        return errors.reply(body.model_dump())

    async def clear(self, _: web.Request) -> web.Response:
        """Everything works again."""
        self._service.faults.clear()
        return errors.reply([])
