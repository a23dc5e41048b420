"""Which images make which batch: a pure function of (seed, epoch)."""

from collections.abc import Iterator

import numpy as np

from gfl.common.errors import UserError
from gfl.data.coco import CocoData

Key = tuple[int, int]  # epoch, index of the image


def train_candidates(data: CocoData, *, keep_empty: bool) -> np.ndarray:
    """Indices of the images to train on: those with boxes, or all.

    Raises `UserError` (code "no_boxes") if no image has a box.
    """
    counts = np.diff(data.offsets)
    candidates = np.arange(len(data)) if keep_empty else np.flatnonzero(counts)
    if not counts.any():
        raise UserError("; ".join((f"{data.annotations}: no image has a box to learn", *data.notes)), code="no_boxes")
    return candidates


class TrainSampler:
    """Batches of an epoch: a pure function of (seed, epoch); each process takes its part.

    Wide and tall images are batched separately to keep padding small. Every image occurs once per epoch; the last
    batch is filled up with images from the beginning of the epoch. Set `epoch` and `first_step` before iterating.

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
                f"(optim.accumulate); use a multiple of {world * accumulate}",
                code="uneven_batch",
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
        full = [group[: len(group) // self.batch * self.batch] for group in groups]
        rest = np.concatenate([group[len(kept) :] for group, kept in zip(groups, full, strict=True)])
        missing = self.steps_per_epoch * self.batch - len(order)
        batches = np.concatenate([*full, rest, np.resize(order, missing)]).reshape(-1, self.batch)
        return self.candidates[rng.permutation(batches)]

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.epoch_batches(self.epoch)[self.first_step :]:
            for part in batch.reshape(self.accumulate, self.world, -1)[:, self.rank]:
                yield [(self.epoch, int(index)) for index in part]

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.accumulate


class EvalSampler:
    """Every image once over all processes; a batch has images of one padded size only, in each of their views.

    So nothing is padded for the sake of another image, and an image's detections do not depend on its batch. Batches
    of one image are the images in their order, every `world`-th for each process.

    Args:
        padded_sizes: (I, 2 S) heights and widths of the network's inputs at all scales.
        batch: images per batch at most; fewer where processes would be left without one.
    """

    def __init__(self, padded_sizes: np.ndarray, *, batch: int = 1, rank: int = 0, world: int = 1) -> None:
        batch = min(batch, max(1, -(-len(padded_sizes) // world)))
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, size in enumerate(padded_sizes.tolist()):
            groups.setdefault(tuple(size), []).append(index)
        batches = [group[start : start + batch] for group in groups.values() for start in range(0, len(group), batch)]
        batches.sort()  # by their first image
        self.batches = batches[rank::world]
        self.rounds = -(-len(batches) // world)  # the most batches that a process has, the same on all of them

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.batches:
            yield [(0, index) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)
