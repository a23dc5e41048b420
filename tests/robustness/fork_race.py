"""Do forked processes start while gloo is busy?

Run `torchrun --nproc_per_node=2 tests/robustness/fork_race.py PAUSE COUNT`.

Each rank forks COUNT times, PAUSE seconds after a round of collective operations, and prints how many children hung.
See `gfl.common.distributed.settle_before_fork`.
"""

import os
import sys
import time

import torch
import torch.distributed as dist

PATIENCE_S = 3.0


def main(pause: float, count: int) -> None:
    dist.init_process_group("gloo")
    group, pending = dist.new_group(backend="gloo"), None
    hung = 0
    for number in range(count):
        received = torch.tensor(number)
        work = dist.all_reduce(received, dist.ReduceOp.MAX, group=group, async_op=True)
        if pending:
            pending[0].wait()
        pending = work, received
        dist.gather_object(number, [None] * dist.get_world_size() if dist.get_rank() == 0 else None)
        for _ in range(5):
            dist.all_reduce(torch.zeros(10))
        time.sleep(pause)
        hung += not starts()
    print(f"rank {dist.get_rank()}: {hung} of {count} hung", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def starts() -> bool:
    """Whether a forked process reaches its first line."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.0003)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
