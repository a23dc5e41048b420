"""Batches copied to a GPU while it works on the ones before."""

from collections.abc import Iterator

import torch

from gfl.structures import Batch


def prefetch(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """`batches` on `device`, the next one on its way while one is used; on a CPU they pass through one by one.

    Copies have a stream of their own: on the one that computes, a copy would wait for the steps before it. They are
    asynchronous where the loader pins its batches. At most one batch more than before is on the device, and a batch is
    asked for one step earlier than it is used.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)
    ahead = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device), copies.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = moved
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch for the current stream, which waits for its copy, and keeps its memory until it has used it."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in (*batch, *batch.targets):
        if isinstance(tensor, torch.Tensor):
            tensor.record_stream(current)
    return batch
