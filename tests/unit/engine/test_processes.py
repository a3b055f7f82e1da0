"""Who belongs to an engine."""

from daemons.engine.processes import ProcessInfo, family

ME = 10


def info(pid: int, parent: int, session: int) -> ProcessInfo:
    return ProcessInfo(pid, parent, session, "S", "x")


def test_the_family_is_its_session_its_descendants_and_adopted_orphans() -> None:
    table = {
        p.pid: p
        for p in (
            info(ME, 1, 5),
            info(20, ME, 20),  # vllm
            info(21, 20, 20),  # its core
            info(22, 21, 22),  # a worker in a session of its own
            info(23, 22, 22),
            info(30, ME, 31),  # an orphan that came to us
            info(40, ME, 5),  # a tool of ours
            info(50, 1, 5),  # a stranger
        )
    }
    assert [p.pid for p in family(20, table, ME)] == [20, 21, 22, 23, 30]
