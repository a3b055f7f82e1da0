"""One rank of a trial all-reduce. Run by vLLM's Python, which has torch: ``all_reduce.py RANK RANKS FILE``.

Ends with 0 when the sum arrived, with `WRONG` when something else did, by SIGALRM when nothing did.
"""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

LIMIT_SECONDS = 30
WRONG = 3
_ELEMENTS = 4 << 20


def main(rank: int, ranks: int, rendezvous: str) -> int:
    """Add up with the other ranks, and copy to a neighbour's memory; returns the exit status."""
    on_gpu = torch.cuda.is_available()
    device = f"cuda:{rank}" if on_gpu else "cpu"
    torch.zeros(1, device=device)
    signal.alarm(LIMIT_SECONDS)
    began = time.monotonic()
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks
    )
    data = torch.full((_ELEMENTS,), float(rank + 1), device=device)
    dist.all_reduce(data)
    total = ranks * (ranks + 1) / 2
    if not bool((data.cpu() == total).all()):
        print("the sum of an all-reduce is wrong")
        return WRONG
    if on_gpu and os.environ.get("NCCL_P2P_DISABLE") != "1":
        # vLLM's own all-reduce writes to its peer like this, without asking whether it arrives.
        copy = data.to(f"cuda:{(rank + 1) % ranks}")
        if not bool((copy.cpu() == total).all()):
            print("a copy to another GPU arrives changed")
            return WRONG
    dist.barrier()
    dist.destroy_process_group()
    print(f"{time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
