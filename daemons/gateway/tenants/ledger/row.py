"""A request that has ended, as a row of the ledger."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemons.gateway.exchange import Exchange
    from daemons.gateway.relay.usage import TokenCounts
    from daemons.gateway.tenants.ledger.book import ClosedRow


def closed_row(
    exchange: Exchange, counts: TokenCounts, outcome: str, now: float, *, estimated: bool
) -> ClosedRow:
    """The row of a request that ends now, at loop time `now`.

    As `Closed`; SQLite binds plain tuples of plain integers at half the cost.
    """
    relay, arrived, queued = exchange.relay, exchange.arrived, exchange.queued_seconds
    ended = time.time_ns() // 1000
    return (
        ended - int((now - arrived) * 1e6),
        ended,
        exchange.tenant.alias,
        exchange.model,
        exchange.endpoint,
        exchange.engine.name if exchange.engine is not None else None,
        exchange.request_id,
        1 if exchange.stream else 0,
        outcome,
        counts.prompt,
        counts.cached,
        counts.completion,
        1 if estimated else 0,
        int(queued * 1e6) if queued else 0,
        int((relay.first_at - arrived) * 1e6) if relay is not None and relay.first_at else None,
    )
