"""What a request does with its limits, without the request."""

from daemons.gateway.tenants.accounts import Refused
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.limiter import Reservation
from daemons.gateway.tenants.reserve import Limits


async def reserve(limits: Limits, bounds: Bounds, tokens: int = 20, address: str = "") -> Reservation | None:
    """A request of the key ``a`` reserves; None where it is refused, here or by who else decides."""
    try:
        made = limits.limiter.reserve("a", bounds, address, tokens)
    except Refused:
        return None
    try:
        await limits.share(made, bounds)
    except Refused:
        made.cancel()
        return None
    return made
