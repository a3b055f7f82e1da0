"""Keys, limits and ledger of a worker, put together."""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import structlog
from prometheus_client.registry import Collector
from pydantic import SecretStr

from daemons.gateway.exchange import Exchange
from daemons.gateway.metrics import Metrics
from daemons.gateway.pool.engine import Engine
from daemons.gateway.settings import GatewaySettings
from daemons.gateway.succession import Succession
from daemons.gateway.tenants.addresses import Clients, Failures
from daemons.gateway.tenants.authenticate import Authenticator
from daemons.gateway.tenants.hand_over import HandOver
from daemons.gateway.tenants.keys import KeyFolder
from daemons.gateway.tenants.ledger.ledger import Ledger
from daemons.gateway.tenants.limiter import Limiter
from daemons.gateway.tenants.meters import TenantsCollector
from daemons.gateway.tenants.reconcile import Reconciliation
from daemons.gateway.tenants.reserve import Limits
from daemons.gateway.tenants.ring import KeyRing
from daemons.gateway.tenants.shared import RedisServer, SharedLimits
from daemons.gateway.tenants.state_file import StateFile

log = structlog.get_logger()

_KEYS_SECONDS = 0.5
_UPKEEP_SECONDS = 5.0


class Tenancy:
    """Who may use the gateway, how much, and what they used.

    Attributes:
        authenticate: the stage that finds the tenant of a request.
        limiter: what keys and addresses use, as counted here.
        limits: the stage that reserves.
        ledger: takes note of requests.
        reconciliation: compares it with the engines.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        metrics: Metrics,
        engines: Collection[Engine],
        active: Callable[[], Collection[Exchange]],
        *,
        succession: Succession | None,
        redis_password: SecretStr | None,
    ) -> None:
        """`active` are the requests on their way; `succession` is this worker's place among others.

        Raises:
            Fatal: limits are to be shared, and the means are not installed.
        """
        addresses = settings.addresses
        self._place = succession
        self._keys = KeyRing()
        self._folder = KeyFolder(settings.keys, self._keys)
        self._failures = Failures(addresses.failures_per_minute)
        self.authenticate = Authenticator(self._keys, Clients(addresses.trusted_proxies), self._failures)
        self.limiter = Limiter(addresses.limits, time.monotonic, time.time)
        self.limits = Limits(self.limiter, metrics.rate_limited)
        self.ledger = Ledger(settings.ledger, settings.accounting.keep_days)
        self._state_file = StateFile(settings.ledger.with_name("limits.json"), self.limiter)
        self._state_known = False
        self._hand_over = HandOver(self.limits, succession.limits) if succession is not None else None
        self.reconciliation = Reconciliation(
            engines, self.ledger, active, settings.accounting.reconcile_seconds
        )
        self.shared: SharedLimits | None = None
        if settings.shared_limits is not None:
            server = RedisServer(settings.shared_limits, redis_password)
            prefix = settings.shared_limits.prefix
            self.shared = self.limits.store = SharedLimits(self.limiter, addresses.limits, server, prefix)
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read the keys, and begin to write the ledger."""
        await asyncio.to_thread(self._folder.refresh)
        self.ledger.start()
        self._in_background(self._watch_keys())
        if self.shared is not None:
            self._in_background(self.shared.run())

    async def take_over(self) -> None:
        """Go on with the limits of the worker that serves until now, else of the one before."""
        hand_over, place = self._hand_over, self._place
        follows = hand_over is not None and place is not None and place.predecessor
        if not (follows and hand_over is not None and await hand_over.take_over()):
            await asyncio.to_thread(self._state_file.load)
        self._state_known = True
        if hand_over is not None:
            await hand_over.offer()
        self._in_background(self._upkeep())
        self._in_background(self._reconcile())

    def collectors(self) -> tuple[Collector, ...]:
        """What Prometheus sees."""
        tenants = TenantsCollector(self._keys, self.limiter, self.ledger, self.limits, self.shared)
        return (tenants, self.reconciliation)

    async def close(self) -> None:
        """Every request has ended: write down what is not written yet."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._hand_over is not None:
            await self._hand_over.close()
        if self.shared is not None:
            await self.shared.close()
        await self._keep_state()
        await asyncio.to_thread(self.ledger.close)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(asyncio.create_task(work))

    @property
    def _succeeded(self) -> bool:
        return self._hand_over is not None and self._hand_over.successor is not None

    async def _watch_keys(self) -> None:
        while True:
            await asyncio.sleep(_KEYS_SECONDS)
            try:
                await asyncio.to_thread(self._folder.refresh)
            except Exception:
                # A revoked key must never live on because the watch has ended.
                log.exception("the key folder could not be read; the last good state stays in force")

    async def _upkeep(self) -> None:
        """Let go of keys and addresses that have not been here for a while, and keep the others' state."""
        while True:
            await asyncio.sleep(_UPKEEP_SECONDS)
            self.limiter.prune()
            self._failures.prune(time.monotonic())
            await self._keep_state()

    async def _keep_state(self) -> None:
        """Write what the limits count, unless nothing is known of them or another worker has taken over."""
        if self._state_known and not self._succeeded:
            await self._state_file.keep()

    async def _reconcile(self) -> None:
        # What a predecessor has on its way is known to it alone, and in the ledger once it has drained.
        if self._hand_over is not None:
            await self._hand_over.predecessor_gone()
        await self.reconciliation.run(lambda: self._succeeded)
