"""GPU trouble as the exporter tells it."""

import pytest

from daemons.engine.board import Board
from daemons.engine.gpu_trouble import trouble_in
from daemons.runtime.control import EngineState

UUID = "GPU-aaaa"


def page(*lines: str) -> str:
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f'gpu_xid_last_timestamp_seconds{{uuid="{UUID}",xid="79"}} 200', "XID 79"),
        (f'gpu_xid_last_timestamp_seconds{{uuid="{UUID}",xid="79"}} 50', ""),
        (f'gpu_xid_last_timestamp_seconds{{uuid="{UUID}",xid="13"}} 200', ""),
        ('gpu_xid_last_timestamp_seconds{uuid="GPU-other",xid="79"} 200', ""),
        (f'gpu_recovery_action{{uuid="{UUID}",action="gpu_reset"}} 1', "asks for gpu_reset"),
        (f'gpu_recovery_action{{uuid="{UUID}",action="none"}} 1', ""),
        (f'gpu_row_remap_failure{{uuid="{UUID}"}} 1', "could not be remapped"),
        (f'gpu_row_remap_failure{{uuid="{UUID}"}} 0', ""),
    ],
)
def test_only_what_concerns_this_engine_makes_it_sick(line: str, said: str) -> None:
    found = trouble_in(page(line), [UUID], since=100)
    assert said in found
    assert bool(found) == bool(said)


def test_a_sick_engine_is_ready_again_when_the_trouble_is_over() -> None:
    board = Board((UUID,), clock=lambda: 0.0)
    board.trouble("XID 79")
    assert board.report().state == EngineState.STARTING
    board.become(EngineState.READY)
    assert (board.report().state, board.report().reason) == (EngineState.SICK, "XID 79")
    board.drain("maintenance")
    assert board.report().state == EngineState.DRAINING
    board.undrain()
    board.trouble("")
    assert board.report().state == EngineState.READY
