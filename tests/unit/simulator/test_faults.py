"""Faults: which requests they hit, and how they are written."""

import asyncio

import pytest
from pydantic import ValidationError

from daemons.simulator.faults import Fault, Faults, parse_flag


def test_a_fault_hits_as_many_requests_as_it_was_given() -> None:
    faults = Faults()
    faults.set(Fault(fault="truncate", requests=2))
    assert [faults.take_stream() is not None for _ in range(4)] == [True, True, False, False]
    assert faults.list() == []


def test_without_a_number_it_hits_all_until_cleared() -> None:
    faults = Faults()
    faults.set(Fault(fault="busy"))
    assert all(faults.take_busy() for _ in range(10))
    faults.clear()
    assert not faults.take_busy()


def test_a_newer_fault_of_a_kind_replaces_the_older() -> None:
    faults = Faults()
    faults.set(Fault(fault="slow", factor=3))
    faults.set(Fault(fault="slow", factor=5))
    assert faults.slowness == 5.0
    assert len(faults.list()) == 1


def test_whoever_steps_is_told_of_every_change() -> None:
    faults, told = Faults(), []
    faults.changed = lambda: told.append(faults.hanging)
    faults.set(Fault(fault="hang"))
    faults.clear()
    assert told == [True, False]


async def test_a_fault_may_come_later() -> None:
    faults, happened = Faults(), asyncio.Event()
    faults.changed = happened.set
    faults.schedule(Fault(fault="death", after_seconds=0.01), asyncio.get_running_loop())
    assert not faults.dying
    await asyncio.wait_for(happened.wait(), 30)
    assert faults.dying


def test_the_flag_names_a_fault_and_its_fields() -> None:
    assert Fault.model_validate(parse_flag("truncate,after_chunks=5,requests=1")) == Fault(
        fault="truncate", after_chunks=5, requests=1
    )


@pytest.mark.parametrize("text", ["nonsense", "slow,factor=-1", "slow,speed=1", "slow,factor=fast"])
def test_a_flag_that_fits_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Fault.model_validate(parse_flag(text))


def test_a_flag_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="'factor' is not key=value"):
        parse_flag("slow,factor")
