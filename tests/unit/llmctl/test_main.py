"""What holds for every verb of ``llmctl``."""

import os
import subprocess
import sys


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    command = [sys.executable, "-m", "daemons.llmctl", "config", "schema", "gateway"]
    reading, writing = os.pipe()
    # Before the program begins: what a pipe has room for could be written before it is closed.
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")
