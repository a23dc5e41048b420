"""What makes a step faster without changing what it computes: compilation, CUDA graphs, arithmetic of the device."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gfl.common import distributed
from gfl.common.errors import UserError
from gfl.config import OptimConfig
from gfl.model.precision import autocast_dtype, set_backends
from gfl.structures import SIZE_DIVISOR, Batch


def set_up_backends(optim: OptimConfig) -> None:
    """`set_backends` of a training.

    Raises `UserError` for CUDA graphs (``optim.compile: reduce-overhead``) with several passes or processes. Gradients
    lie in a graph's own memory, which the next pass overwrites (pytorch issue 169545), and may do so silently.
    """
    if optim.compile == "reduce-overhead" and (optim.accumulate > 1 or distributed.world_size() > 1):
        raise UserError(
            "optim.compile=reduce-overhead needs one process and optim.accumulate=1: CUDA graphs overwrite the "
            "gradients of an earlier pass; use optim.compile=default",
            code="cuda_graphs",
        )
    set_backends(optim)


@functools.cache
def accelerated(function: Callable, optim: OptimConfig, device: torch.device) -> Callable:
    """`function`, which is `compute_losses`, compiled as `optim.compile` says; itself where nothing can be compiled.

    It is compiled as a whole, from uint8 images to losses, so that sizes stay symbolic all the way: one graph serves
    images of every size and any number of boxes, and nothing is padded further for its sake. Only unusual batches get
    graphs of their own (regions to ignore; at most one box per image; maps of a single point). The model itself stays
    as it is: evaluation, checkpoints and their names do not know of this.
    """
    if optim.compile == "none" or compile_problem(device):
        return function
    import torch._dynamo  # takes seconds, and only compilation needs it

    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # constants only
    # DDP's own code is not compiled: the graph breaks around the model. It would also be split wherever gradients can
    # be sent while others are computed, but that fails for sizes that vary (torch 2.14).
    torch._dynamo.config.optimize_ddp = False
    compiled = torch.compile(_from_cells(function), mode=optim.compile, fullgraph=distributed.world_size() == 1)
    # A compiled function cannot ask the hardware.
    amp = {None: "none", torch.bfloat16: "bf16", torch.float16: "fp16"}[autocast_dtype(optim, device)]
    resolved = replace(optim, amp=amp)

    def call(model: Any, criterion: Any, batch: Batch, _: OptimConfig, step: Any = None) -> dict[str, Tensor]:
        losses = compiled(model, criterion, _to_cells(batch), resolved, step)
        if optim.compile == "default":
            return losses
        return {name: loss.clone() for name, loss in losses.items()}  # the next replay writes over the graph's own

    return call


def _to_cells(batch: Batch) -> Batch:
    """The batch with images as (B, 3, H / 32, 32, W / 32, 32), and the sizes marked that are no constants.

    Since the compiler then knows that 32 divides height and width, it needs far less time for the sizes of the levels.
    Sizes that are equal by chance may differ in the next batch; automatic marks would take them for the same.
    """
    images = batch.images.unflatten(3, (-1, SIZE_DIVISOR)).unflatten(2, (-1, SIZE_DIVISOR))
    varying = [(images, 2), (images, 4), *((tensor, 1) for tensor in batch.targets if tensor is not None)]
    for tensor, axis in varying:
        torch._dynamo.maybe_mark_dynamic(tensor, axis)
    return batch._replace(images=images)


def _from_cells(function: Callable) -> Callable:
    """`function`, for batches from `_to_cells`."""

    def call(model: Any, criterion: Any, batch: Batch, optim: OptimConfig, step: Any) -> dict[str, Tensor]:
        images = batch.images.flatten(4, 5).flatten(2, 3)
        return function(model, criterion, batch._replace(images=images), optim, step)

    return call


@functools.cache
def compile_problem(device: torch.device) -> str:
    """Why nothing can be compiled for `device`, in one line, as a trial says; empty where it can."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of any kind: of the compiler, of Triton, of the operating system
        return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ""
