"""From a split to batches. What is random is a pure function of (seed, epoch, index), not of the number of workers."""

import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gfl.common.errors import UserError
from gfl.config import DataConfig
from gfl.data.bad_images import BadImage
from gfl.data.coco import CocoData, image_path
from gfl.data.transforms import Augmentation, flip, keep_ratio_size, read_image, resize
from gfl.method.points import SIZE_DIVISOR
from gfl.structures import Batch, Targets

Key = tuple[int, int]  # epoch, index of the image
MOST_SPARES = 100  # images tried in place of a bad one, before the whole folder counts as bad


class Sample(NamedTuple):
    """One image, ready to be batched."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    boxes_xyxy: np.ndarray  # (n, 4) float32 pixels of `image`
    labels: np.ndarray  # (n,) int64
    image_id: int
    orig_size: tuple[int, int]  # height, width of the file


class CocoDataset(Dataset):
    """Images of a split by (epoch, index). Training draws scale, augmentation and flip; evaluation draws nothing."""

    def __init__(self, data: CocoData, config: DataConfig, *, training: bool, seed: int = 0) -> None:
        self.data, self.training, self.seed = data, training, seed
        self.short_sides, self.long_side, self.flip = config.short_sides, config.long_side, config.flip
        self.eval_short_side = config.short_side_in_eval
        self.augmentation = Augmentation(config.augment) if training and config.augment else None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        boxes_xyxy, labels = self.data.boxes_of(index)
        orig_size = tuple(self.data.sizes[index].tolist())
        image = read_image(image_path(self.data, index), orig_size)
        rng = np.random.default_rng((self.seed, epoch, index)) if self.training else None
        low, high = self.short_sides
        short_side = int(rng.integers(low, high + 1)) if rng else self.eval_short_side
        size = keep_ratio_size(*orig_size, short_side=short_side, long_side=self.long_side)
        image, boxes_xyxy = resize(image, boxes_xyxy, size)
        if self.augmentation:
            image, boxes_xyxy, labels = self.augmentation(image, boxes_xyxy, labels, rng)
        if rng and rng.random() < self.flip:
            image, boxes_xyxy = flip(image, boxes_xyxy)
        return Sample(image, boxes_xyxy, labels, int(self.data.image_ids[index]), orig_size)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad images to the largest height and width, rounded up to `SIZE_DIVISOR`, and boxes to the largest number."""
    sizes = np.array([sample.image.shape[:2] for sample in samples])
    height, width = -(-sizes.max(axis=0) // SIZE_DIVISOR) * SIZE_DIVISOR
    slots = max(1, *(len(sample.labels) for sample in samples))  # one empty slot where no image has a box
    images = torch.zeros(len(samples), 3, int(height), int(width), dtype=torch.uint8)
    boxes_xyxy = torch.zeros(len(samples), slots, 4)
    labels = torch.zeros(len(samples), slots, dtype=torch.int64)
    valid = torch.zeros(len(samples), slots, dtype=torch.bool)
    for row, sample in enumerate(samples):
        pixels = torch.from_numpy(np.ascontiguousarray(sample.image))
        images[row, :, : pixels.shape[0], : pixels.shape[1]] = pixels.permute(2, 0, 1)
        count = len(sample.labels)
        boxes_xyxy[row, :count] = torch.from_numpy(sample.boxes_xyxy)
        labels[row, :count] = torch.from_numpy(sample.labels)
        valid[row, :count] = True
    return Batch(
        images=images,
        image_sizes=torch.from_numpy(sizes),
        targets=Targets(boxes_xyxy, labels, valid),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        orig_sizes=torch.tensor([sample.orig_size for sample in samples]),
    )


class TrainSampler:
    """Batches of an epoch: a pure function of (seed, epoch), of which each process takes its part.

    Wide and tall images stay apart, so that little is padded. Every image occurs once per epoch; the last batch is
    filled up from the beginning of the epoch. Set `epoch` and `first_step` before iterating.

    Args:
        candidates: indices of the images to train on.
        sizes: (I, 2) heights and widths of all images.
        batch: images per step over all processes and passes; must be a multiple of `world * accumulate`.
    """

    def __init__(
        self,
        candidates: np.ndarray,
        sizes: np.ndarray,
        *,
        batch: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ) -> None:
        if batch % (world * accumulate):
            raise UserError(
                f"optim.batch: {batch} images cannot be shared evenly by {world} processes x {accumulate} passes "
                f"(optim.accumulate); use a multiple of {world * accumulate}"
            )
        self.candidates, self.wide = candidates, sizes[candidates, 1] > sizes[candidates, 0]
        self.batch, self.accumulate, self.rank, self.world, self.seed = batch, accumulate, rank, world, seed
        self.epoch = self.first_step = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.candidates) // self.batch)

    def epoch_batches(self, epoch: int) -> np.ndarray:
        """(steps, batch) indices of images, over all processes."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.candidates))
        groups = [order[self.wide[order]], order[~self.wide[order]]]
        whole = [group[: len(group) // self.batch * self.batch] for group in groups]
        rest = np.concatenate([group[len(kept) :] for group, kept in zip(groups, whole, strict=True)])
        missing = self.steps_per_epoch * self.batch - len(order)
        batches = np.concatenate([*whole, rest, np.resize(order, missing)]).reshape(-1, self.batch)
        return self.candidates[rng.permutation(batches)]

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.epoch_batches(self.epoch)[self.first_step :]:
            for part in batch.reshape(self.accumulate, self.world, -1)[:, self.rank]:
                yield [(self.epoch, int(index)) for index in part]

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.accumulate


def build_train_loader(
    data: CocoData, config: DataConfig, sampler: TrainSampler, *, seed: int, pin_memory: bool = False
) -> DataLoader:
    """Batches of `data` in the order of `sampler`; with ``on_bad_image: skip`` it may put one image for another."""
    dataset = CocoDataset(data, config, training=True, seed=seed)
    guarded = _Guarded(dataset, spares=sampler.candidates if config.on_bad_image == "skip" else None)
    return _loader(guarded, sampler, config.workers, pin_memory)


def build_eval_loader(
    data: CocoData, config: DataConfig, *, batch: int = 1, rank: int = 0, world: int = 1, pin_memory: bool = False
) -> DataLoader:
    """Every image of `data` exactly once over all processes: each takes every `world`-th, none is repeated.

    A bad image is an error whatever ``on_bad_image`` says: figures without it would not be the split's.
    """
    keys = [(0, index) for index in range(rank, len(data), world)]
    batches = [keys[start : start + batch] for start in range(0, len(keys), batch)]
    why = "; data.on_bad_image=skip is for training, figures must not miss an image"
    guarded = _Guarded(CocoDataset(data, config, training=False), why=why if config.on_bad_image == "skip" else "")
    return _loader(guarded, batches, config.workers, pin_memory)


def train_candidates(data: CocoData, *, keep_empty: bool) -> np.ndarray:
    """Indices of the images to train on: those with boxes, or all."""
    counts = np.diff(data.offsets)
    candidates = np.arange(len(data)) if keep_empty else np.flatnonzero(counts)
    if not counts.any():
        raise UserError(f"{data.annotations}: no image has a box to learn")
    return candidates


def batches(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches; an error in a loader process arrives as the `UserError` it was, in one line.

    The first bad image that was replaced is told; `loader.dataset.bad` names all so far, with reasons.
    """
    in_processes = getattr(loader, "num_workers", 0) > 0
    for loaded in _watched(loader) if in_processes else loader:
        if isinstance(loaded, UserError):
            # A new one: raising `loaded` itself would tie this frame, and with it the processes, into a cycle.
            raise UserError(str(loaded))
        if isinstance(loaded, _Mended):
            if not loader.dataset.bad:
                reason = next(iter(loaded.bad.values()))
                tqdm.write(f"warning  {reason}; training goes on with others in place of such images")
            loader.dataset.bad |= loaded.bad
            loaded = loaded.batch
        yield loaded


def _watched(loader: Iterable) -> Iterator:
    """What `loader` yields; raises `UserError` where one of its processes has died."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(loader)
        # Torch's handler would raise wherever the program just stands, even while it saves; without it the death shows
        # here, when batches no longer come.
        signal.signal(signal.SIGCHLD, handler)
        yield from iterator
        return
    except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
        if not _is_death(error):
            raise
    raise UserError(
        "a loader process died, most likely because memory, or shared memory (/dev/shm), ran out; lower data.workers, "
        "then run the command again, training with --resume"
    )


def _is_death(error: Exception) -> bool:
    """Whether a loader process is gone, as opposed to one that reports an error, with its traceback."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(("DataLoader worker (pid", "Pin memory thread exited"))
    # While it dies, its socket goes first, from which this process fetches the memory of a batch.
    return "in DataLoader worker process" not in str(error)


class _Mended(NamedTuple):
    """A batch in which other images stand for bad ones."""

    batch: Batch
    bad: dict[str, str]  # file name -> what is wrong with it


class _Guarded(Dataset):
    """Turns a `UserError` into a value, since the loader would wrap the exception in its process's traceback.

    Args:
        spares: indices of the images that may take a bad one's place; None where none may.
        why: why not, the end of the error's message.
    """

    def __init__(self, dataset: CocoDataset, *, spares: np.ndarray | None = None, why: str = "") -> None:
        self.dataset, self.spares, self.why = dataset, spares, why
        self.bad: dict[str, str] = {}  # of the batches that the main process has seen: file name -> reason

    def __getitems__(self, keys: list[Key]) -> Batch | _Mended | UserError:
        bad: dict[str, str] = {}
        try:
            batch = collate([self._sample(key, bad) for key in keys])
        except UserError as error:
            return error
        return _Mended(batch, bad) if bad else batch

    def _sample(self, key: Key, bad: dict[str, str]) -> Sample:
        """The sample of `key`, or of the first of its spares that is good; `bad` gains what was not."""
        for candidate in self._in_turn(key):
            try:
                return self.dataset[candidate]
            except BadImage as error:
                if self.spares is None:
                    raise BadImage(f"{error}{self.why}") from None
                bad[str(self.dataset.data.file_names[candidate[1]])] = reason = str(error)
        raise UserError(f"data.on_bad_image=skip found nothing but bad images, {len(bad)} in a row; the last: {reason}")

    def _in_turn(self, key: Key) -> Iterator[Key]:
        """`key`, then its spares: a pure function of the seed and the key, as all else in a sample."""
        yield key
        rng = np.random.default_rng((self.dataset.seed, *key, 1))
        for index in rng.permutation(self.spares)[:MOST_SPARES]:
            yield key[0], int(index)


def _loader(dataset: _Guarded, batch_sampler: Sequence | TrainSampler, workers: int, pin_memory: bool) -> DataLoader:
    with warnings.catch_warnings():  # of more processes than cores: train.py has a note for that
        warnings.filterwarnings("ignore", "This DataLoader will create")
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=workers,
            collate_fn=_identity,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_main,
        )


def _leave_signals_to_main(worker: int) -> None:
    """Outlive the signals that a terminal or a scheduler sends to all processes: the main one takes some more steps.

    SIGTERM is also how the main process ends a worker that is left over, so that one ends it, but later.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))  # SIGALRM ends the process


def _identity(batch: Batch) -> Batch:
    return batch
