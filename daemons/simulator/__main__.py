"""``llm-simulator serve MODEL …``: an engine that behaves like vLLM."""

import asyncio
import sys

import uvloop

from daemons.runtime.errors import Fatal
from daemons.simulator import options
from daemons.simulator.server import serve


def main(argv: list[str] | None = None) -> int:
    """Run one simulated engine; returns the exit status that vLLM would have."""
    parsed = options.parse(argv)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(parsed))
    except Fatal as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
