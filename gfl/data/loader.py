"""The data of a training run: both splits, their loaders, and the loader processes."""

import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from gfl.common import distributed
from gfl.common.errors import UserError
from gfl.common.text import printable
from gfl.config import Config, DataConfig, EvalConfig
from gfl.data.coco import CocoData, check_ignore_classes, load_coco
from gfl.data.dataset import ONE_VIEW, CocoDataset, PatchedBatch, SafeDataset, size_in_eval
from gfl.data.sampler import EvalSampler, TrainSampler, train_candidates
from gfl.structures import SIZE_DIVISOR, Batch


class TrainingData(NamedTuple):
    """What a run trains on and is validated with; the loaders yield this process's part."""

    train: CocoData
    val: CocoData
    sampler: TrainSampler
    train_loader: DataLoader
    val_loader: DataLoader

    def digests(self) -> dict[str, str]:
        """What the splits hold, by name; see `CocoData.digest`."""
        return {"train": self.train.digest, "val": self.val.digest}


def load_training_data(config: Config, device: torch.device) -> TrainingData:
    """Read both splits and build their loaders; raises `UserError` if either cannot be used."""
    data = config.data
    shard = {"rank": distributed.rank(), "world": distributed.world_size()}
    pin_memory = device.type == "cuda"
    train = load_coco(data.train.annotations, data.train.images, ignore_classes=data.ignore_classes)
    check_ignore_classes(train, data.ignore_classes)
    val = load_coco(data.val.annotations, data.val.images, train.class_names, ignore_classes=data.ignore_classes)
    if not val.has_annotations:
        raise UserError(f"{data.val.annotations} has no annotations to evaluate on; set data.val to a split that has")
    sampler = TrainSampler(
        train_candidates(train, keep_empty=data.keep_empty),
        train.sizes,
        batch=config.optim.batch,
        accumulate=config.optim.accumulate,
        seed=config.seed,
        **shard,
    )
    train_loader = build_train_loader(train, data, sampler, seed=config.seed, pin_memory=pin_memory)
    val_loader = build_eval_loader(val, data, config.eval, pin_memory=pin_memory, **shard)
    return TrainingData(train, val, sampler, train_loader, val_loader)


def build_train_loader(
    data: CocoData, config: DataConfig, sampler: TrainSampler, *, seed: int, pin_memory: bool = False
) -> DataLoader:
    """Batches of `data` in the order of `sampler`; ``on_bad_image: skip`` replaces bad images by others."""
    dataset = CocoDataset(data, config, training=True, seed=seed)
    replacements = sampler.candidates if config.on_bad_image == "skip" else None
    hint = "; with data.on_bad_image=skip training takes others in place of such images"
    safe = SafeDataset(dataset, replacements=replacements, hint=hint)
    return _build_loader(safe, sampler, config.workers, pin_memory, persistent=config.persistent_workers)


def build_eval_loader(
    data: CocoData,
    config: DataConfig,
    evaluation: EvalConfig = ONE_VIEW,
    *,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """Every image of `data` exactly once over all processes, in the batches of `EvalSampler`, in all its views.

    A bad image is an error even with ``on_bad_image: skip``: metrics without it would not be those of the split.
    """
    sizes = padded_sizes_in_eval(data, config, evaluation.tta_scales)
    sampler = EvalSampler(sizes, batch=evaluation.batch, rank=rank, world=world)
    hint = "; data.on_bad_image=skip applies to training only" if config.on_bad_image == "skip" else ""
    dataset = SafeDataset(CocoDataset(data, config, training=False, evaluation=evaluation), hint=hint)
    return _build_loader(dataset, sampler, config.workers, pin_memory)


def padded_sizes_in_eval(data: CocoData, config: DataConfig, scales: Sequence[float] = (1.0,)) -> np.ndarray:
    """(I, 2 S) heights and widths of the network's inputs at S scales, each image padded by itself."""
    sizes, index = np.unique(data.sizes, axis=0, return_inverse=True)
    resized = np.array(
        [[side for scale in scales for side in size_in_eval(*size, config, scale)] for size in sizes.tolist()]
    )
    return (-(-resized // SIZE_DIVISOR) * SIZE_DIVISOR)[index.reshape(-1)]


def batches(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches; a `UserError` in a loader process is raised here without that process's traceback.

    The first bad image that is replaced is printed; `loader.dataset.bad` collects all of them, with reasons.
    """
    in_processes = getattr(loader, "num_workers", 0) > 0
    for loaded in _watch_workers(loader) if in_processes else loader:
        if isinstance(loaded, UserError):
            if in_processes:
                loader._iterator = None  # of processes that persist; torch has no public way to end them
            # A new one: raising `loaded` itself would tie this frame, and with it the processes, into a cycle.
            raise UserError(str(loaded), code=loaded.code)
        if isinstance(loaded, PatchedBatch):
            if not loader.dataset.bad:
                reason = next(iter(loaded.bad.values()))
                tqdm.write(f"warning  {printable(reason)}; training replaces such images by others")
            loader.dataset.bad |= loaded.bad
            loaded = loaded.batch
        yield loaded


def prefetch(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """`batches` on `device`, the next one on its way while one is used; on a CPU they pass through one by one.

    Copies have a stream of their own: on the one that computes, a copy would wait for the steps before it. They are
    asynchronous where the loader pins its batches. At most one batch more than before is on the device, and a batch is
    asked for one step earlier than it is used.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies = _copy_stream(device)
    ahead = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device), copies.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = moved
    if ahead is not None:
        yield _arrived(*ahead)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs: memory that was freed is kept for the stream that used it."""
    return torch.cuda.Stream(device)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch for the current stream, which waits for its copy, and keeps its memory until it has used it."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in (*batch, *batch.targets):
        if isinstance(tensor, torch.Tensor):
            tensor.record_stream(current)
    return batch


def _watch_workers(loader: Iterable) -> Iterator:
    """The items of `loader`; raises `UserError` if one of its processes has died."""
    handler = signal.getsignal(signal.SIGCHLD)
    distributed.settle_before_fork()
    try:
        iterator = iter(loader)
        # Torch's handler would raise at any place in the program, even while it saves; without it the death is noticed
        # here, when no more batches arrive.
        signal.signal(signal.SIGCHLD, handler)
        yield from iterator
        return
    except Exception as error:
        if not worker_died(error):
            raise
    raise UserError(
        "a loader process died, most likely because memory, or shared memory (/dev/shm), ran out; lower data.workers, "
        "then run the command again, training with --resume",
        code="loader_died",
    )


def worker_died(error: BaseException) -> bool:
    """Whether a `DataLoader` raised `error` because one of its processes is gone, not because one reported an error.

    Torch has no exception types for the two, only different texts.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith(("DataLoader worker (pid", "Pin memory thread exited"))
    # A dying process first closes the socket from which this process fetches the memory of a batch.
    closed = isinstance(error, ConnectionError | FileNotFoundError | EOFError)
    return closed and "in DataLoader worker process" not in str(error)


def _build_loader(
    dataset: SafeDataset,
    batch_sampler: EvalSampler | TrainSampler,
    workers: int,
    pin_memory: bool,
    *,
    persistent: bool = False,
) -> DataLoader:
    # About more processes than cores, here and whenever it is iterated: train.py prints its own note.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_stop_signals,
        persistent_workers=persistent and workers > 0,
    )


def _ignore_stop_signals(worker: int) -> None:
    """Outlive the signals that a terminal or a scheduler sends to all processes: the main one needs a few more batches.

    The main process also ends leftover workers with SIGTERM, so that signal ends the worker, but 10 s later.
    """
    os.setpgid(0, 0)
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))  # SIGALRM ends the process


def _identity(batch: Batch) -> Batch:
    return batch
