"""What keys, limits and the ledger add to a request, in CPU: python tests/bench/tenants_cost.py

Counts all of it: the event loop's part and the ledger's thread until every row is in the file. The floor that
the project holds itself to is 15 microseconds.
"""

import argparse
import gc
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import structlog
from multidict import CIMultiDict, CIMultiDictProxy

from daemons.gateway.exchange import Exchange
from daemons.gateway.metrics import Counter
from daemons.gateway.relay.usage import TokenCounts
from daemons.gateway.tenants.addresses import Clients, Failures
from daemons.gateway.tenants.authenticate import Authenticator
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.key_files import hash_of
from daemons.gateway.tenants.keys import KeySettings
from daemons.gateway.tenants.ledger.ledger import Ledger
from daemons.gateway.tenants.limiter import Limiter
from daemons.gateway.tenants.reserve import Limits
from daemons.gateway.tenants.ring import KeyRing

LIMIT_MICROSECONDS = 15.0
_MANY = 1_000_000_000


class Stages:
    """The three stages as the gateway puts them together, for `keys` keys with every limit."""

    def __init__(self, folder: Path, keys: int) -> None:
        ring = KeyRing()
        bounds = Bounds(
            requests_per_minute=_MANY,
            tokens_per_minute=_MANY,
            concurrency=_MANY,
            tokens_per_day=_MANY,
            tokens_per_month=_MANY,
        )
        names = [f"team-{i}" for i in range(keys)]
        ring.replace(KeySettings(name=n, secrets=[hash_of(f"sk-{n}")], limits=bounds) for n in names)
        self.headers = [
            CIMultiDictProxy(CIMultiDict({"Host": "x", "Authorization": f"Bearer sk-{name}"}))
            for name in names
        ]
        self.authenticate = Authenticator(ring, Clients(()), Failures(30))
        self.limits = Limits(Limiter(Bounds(), time.monotonic, time.time), Counter())
        self.ledger = Ledger(folder / "ledger.db", keep_days=90)
        self.ledger.start()

    def bare(self, requests: int) -> float:
        """Microseconds of CPU of what a request is without these stages."""
        tenant, _ = self.authenticate(self.headers[0], "192.0.2.1")
        began = time.process_time()
        opened = []
        for i in range(requests):
            headers = self.headers[i % len(self.headers)]
            exchange = Exchange("0" * 32, tenant, "chat", time.monotonic(), "", model="llama-8b")
            opened.append((exchange, headers))
        for _ in opened:
            time.monotonic()
        return (time.process_time() - began) / requests * 1e6

    def run(self, requests: int, at_once: int) -> None:
        """`requests` that each take their way, `at_once` of them beside each other."""
        counts = TokenCounts(200, 50, 80)
        for first in range(0, requests, at_once):
            opened = []
            for i in range(first, first + at_once):
                tenant, client = self.authenticate(self.headers[i % len(self.headers)], "192.0.2.1")
                exchange = Exchange("0" * 32, tenant, "chat", time.monotonic(), client, model="llama-8b")
                exchange.reservation = self.limits.reserve(tenant, client, 200, 100)
                self.limits.fields(tenant)
                self.ledger.began(exchange)
                opened.append(exchange)
            for exchange in opened:
                self.ledger.ended(exchange, counts, "ok", time.monotonic(), estimated=False)
                if exchange.reservation is not None:
                    exchange.reservation.settle(counts.prompt, counts.completion)


def measure(requests: int, keys: int) -> tuple[float, float]:
    """Microseconds of CPU for each of `requests`, with the three stages and without them."""
    with tempfile.TemporaryDirectory(prefix="tenants-cost-") as folder:
        stages = Stages(Path(folder), keys)
        stages.run(1000, 100)
        stages.ledger.ask(lambda _: None).result(60)
        began = time.process_time()
        # As it comes in a second of a busy gateway: the ledger writes while requests run.
        for _ in range(requests // 500):
            stages.run(500, 100)
            time.sleep(0.01)
        stages.ledger.ask(lambda _: None).result(60)
        used = time.process_time() - began
        bare = stages.bare(requests)
        stages.ledger.close()
        if stages.ledger.written != requests + 1000:
            raise SystemExit(f"{stages.ledger.written} rows are in the ledger, {requests + 1000} were due")
    return used / requests * 1e6, bare


def main() -> int:
    """Print the cost; returns 1 when it is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--keys", type=int, default=200)
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    # As a worker of the gateway has it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    runs = [measure(args.requests, args.keys) for _ in range(20)]
    # The least of each: other work on the machine only ever adds.
    bare = min(bare for _, bare in runs)
    best = min(used for used, _ in runs) - bare
    middle = statistics.median(used for used, _ in runs) - bare
    print(
        f"keys, limits and ledger: {best:.1f} microseconds of CPU a request at best, "
        f"{middle:.1f} in the middle of {len(runs)} runs (limit {LIMIT_MICROSECONDS:g})"
    )
    return int(middle > LIMIT_MICROSECONDS)


if __name__ == "__main__":
    sys.exit(main())
