"""The few collective operations that training and evaluation need. With one process each is the identity."""

import os
import time
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gfl.common.errors import UserError

FORK_PAUSE_S = 0.05  # the work takes microseconds


def rank() -> int:
    """This process's number, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def launch_id() -> str:
    """Identifies one call of torchrun, also in the processes that it restarts; empty without torchrun."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{run_id} {os.getppid()}" if run_id else ""


def restart_prefix(environment: Mapping[str, str]) -> str:
    """A prefix for keys in torchrun's store: the number of restarts, since entries of earlier starts are stale.

    Raises `UserError` for several nodes that share torchrun's own store: each node counts its restarts separately, and
    processes with different prefixes would wait for each other for ever (pytorch issue 135712).
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return ""  # each start creates its own store
    if environment.get("GROUP_WORLD_SIZE") == "1":
        return environment.get("TORCHELASTIC_RESTART_COUNT", "")
    if environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise UserError(
            "torchrun --max-restarts over several nodes needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 set on each",
            code="shared_store",
        )
    return ""


@contextmanager
def process_group():
    """Join the group that torchrun describes in the environment, if any, and yield this process's device.

    Raises `UserError` when another process of the group has ended.
    """
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} has no GPU: --nproc_per_node at most {torch.cuda.device_count()}", code="no_gpu"
        )
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    prefix, (backend, device_id) = restart_prefix(os.environ), ("nccl", device) if cuda else ("gloo", None)
    try:
        store, number, world = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(f"start{prefix}", store)
        dist.init_process_group(backend, store=store, rank=number, world_size=world, device_id=device_id)
    except (ValueError, dist.DistError) as error:
        raise UserError(
            f"cannot connect to the other processes of the run: {str(error).splitlines()[0]}", code="processes"
        ) from None
    try:
        yield device
    except RuntimeError as error:
        # NCCL's errors have their own type; gloo's are recognized only by the path of its source in their text.
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise UserError(
            f"process {rank()} lost another process of the run, whose own error says why; continue with --resume",
            code="processes",
        ) from None
    dist.destroy_process_group()  # after an error NCCL would wait for the others, torchrun for this


def settle_before_fork() -> None:
    """Give the threads of finished collective operations time to end their work; call it before processes are forked.

    A thread that takes Python's lock for the first time holds a lock of the interpreter for an instant. A process that
    is forked in that instant waits for it for ever, in `PyOS_AfterFork_Child`.
    """
    if world_size() > 1:
        time.sleep(FORK_PAUSE_S)


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over all processes, the same on each."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world_size()


def gather_to_main(value: Any) -> list[Any] | None:
    """All processes' values, in order of rank, on the main process; None on the others. They must be picklable."""
    if world_size() == 1:
        return [value]
    gathered = [None] * world_size() if is_main() else None
    dist.gather_object(value, gathered)
    return gathered


def share_from_main(value: Any) -> Any:
    """The main process's value, which must be picklable, on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def share_buffers(module: nn.Module) -> None:
    """Copy the main process's buffers to every process."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
