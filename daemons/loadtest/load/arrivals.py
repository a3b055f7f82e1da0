"""Arrival times of open-loop loads, in seconds from the start, generated lazily and reproducibly."""

import math
import random
from collections.abc import Iterator
from itertools import count, islice, takewhile

from daemons.loadtest.load.plan import Constant, Gamma, Plan, Poisson, Ramp, Steps


def arrivals(plan: Plan, rng: random.Random) -> Iterator[float]:
    """Intended starts of `plan`'s load, ascending.

    Raises:
        TypeError: the load has no arrival times of its own (closed loop, trace).
    """
    load, end = plan.load, plan.seconds
    times: Iterator[float]
    if isinstance(load, Constant):
        times = (index / load.rate for index in count())
    elif isinstance(load, Poisson):
        times = poisson(load.rate, rng)
    elif isinstance(load, Gamma):
        times = gamma(load.rate, load.burstiness, rng)
    elif isinstance(load, Ramp):
        times = ramp(load.from_rate, load.to_rate, plan.seconds, rng)
    elif isinstance(load, Steps):
        times, end = steps([(s.rate, s.seconds) for s in load.steps], rng), plan.duration or math.inf
    else:
        raise TypeError(f"a {load.shape} load has no arrival times of its own")
    if plan.requests is not None:
        return islice(times, plan.requests)
    return takewhile(lambda at: at < end, times)


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """A Poisson process of `rate` a second."""
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def gamma(rate: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Gamma-distributed gaps with mean 1/`rate` and a coefficient of variation of 1/sqrt(`burstiness`)."""
    at = 0.0
    while True:
        at += rng.gammavariate(burstiness, 1 / (rate * burstiness))
        yield at


def ramp(from_rate: float, to_rate: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """A Poisson process whose rate goes linearly from one value to the other in `seconds`, then stays.

    Time-rescaling: the n-th arrival is where the integrated rate reaches the n-th arrival of a unit process.
    """
    slope = (to_rate - from_rate) / seconds
    at_end = (from_rate + to_rate) / 2 * seconds
    reached = 0.0
    while True:
        reached += rng.expovariate(1.0)
        if reached >= at_end:
            yield seconds + (reached - at_end) / to_rate
        elif slope == 0:
            yield reached / from_rate
        else:
            yield (math.sqrt(from_rate * from_rate + 2 * slope * reached) - from_rate) / slope


def steps(plan: list[tuple[float, float]], rng: random.Random) -> Iterator[float]:
    """Poisson processes of (rate, seconds), one after the other."""
    start = 0.0
    for rate, seconds in plan:
        for at in poisson(rate, rng):
            if at >= seconds:
                break
            yield start + at
        start += seconds
