"""``GET /v1/usage``: what a key has used, by day and model."""

import asyncio
import datetime as dt
import math
import sqlite3
from pathlib import Path
from time import monotonic

import structlog
from aiohttp import web
from aiohttp.web_request import BaseRequest

from daemons.gateway.api.info import json_response
from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.tenants.authenticate import Authenticator
from daemons.gateway.tenants.ledger import book
from daemons.gateway.tenants.ledger.book import UsageRow
from daemons.gateway.tenants.reserve import Limits
from daemons.gateway.tenants.windows import Window

log = structlog.get_logger()

_PER_MINUTE = 60
"""Times that a key may ask: each is a query of the ledger's file, beside the token path."""


class Usage:
    """Tells every key its own usage, and nobody else's.

    Args:
        authenticate: finds the key.
        limits: know what is left of its budgets.
        ledger: the ledger's file.
    """

    def __init__(self, authenticate: Authenticator, limits: Limits, ledger: Path) -> None:
        self._authenticate = authenticate
        self._limits = limits
        self._ledger = ledger
        self._asked: dict[str, Window] = {}
        self._reading = asyncio.Lock()

    async def __call__(self, request: BaseRequest) -> web.StreamResponse:
        """The usage from ``?from=`` to ``?to=``, days as in 2027-01-31; by default of this month (UTC).

        Raises:
            ApiError: no valid key, a malformed day, asked too often, or the ledger cannot be read at present.
        """
        tenant, _ = self._authenticate(request.headers, request.remote)
        today = dt.datetime.now(dt.UTC).date()
        since = _day(request, "from", today.replace(day=1))
        until = _day(request, "to", today)
        self._count(tenant.alias)
        try:
            # One at a time: many threads of them would hold the token path up.
            async with self._reading:
                rows = await asyncio.to_thread(
                    book.usage, self._ledger, by=("day", "model"), since=since, until=until, key=tenant.alias
                )
        except sqlite3.Error as error:
            log.warning("the ledger cannot be read", reason=str(error))
            raise ApiError(
                ErrorCode.INTERNAL_ERROR,
                "Usage cannot be read at the moment; nothing of it is lost.",
                headers={"Retry-After": "30"},
                status=503,
            ) from None
        return json_response(
            {
                "object": "list",
                "key": tenant.alias,
                "from": since,
                "to": until,
                "data": [_row(row) for row in rows],
                "limits": tenant.limits.model_dump(exclude_none=True),
                "remaining": self._limits.remaining(tenant),
            }
        )

    def _count(self, alias: str) -> None:
        now = monotonic()
        window = self._asked.setdefault(alias, Window())
        if window.advance(now) >= _PER_MINUTE:
            seconds = math.ceil(window.wait(1, _PER_MINUTE, now))
            raise ApiError(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"This API key may ask for its usage {_PER_MINUTE} times a minute; try again in {seconds} s.",
                headers={"Retry-After": str(seconds)},
            )
        window.add(1, now)


def _day(request: BaseRequest, name: str, default: dt.date) -> str:
    given = request.rel_url.query.get(name)
    if given is None:
        return default.isoformat()
    try:
        return dt.date.fromisoformat(given).isoformat()
    except ValueError:
        raise ApiError(
            ErrorCode.INVALID_REQUEST, f"'{name}' must be a day, as in 2027-01-31.", param=name
        ) from None


def _row(row: UsageRow) -> dict[str, object]:
    return {
        "object": "usage",
        "day": row.day,
        "model": row.model,
        "requests": row.requests,
        "failed": row.failed,
        "prompt_tokens": row.prompt_tokens,
        "cached_tokens": row.cached_tokens,
        "completion_tokens": row.completion_tokens,
    }
