"""From an image of a split to a sample, and from samples to a batch.

All randomness is a pure function of (seed, epoch, index), not of the number of loader processes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from gfl.common.errors import UserError
from gfl.config import DataConfig, EvalConfig
from gfl.data.coco import CocoData, image_path
from gfl.data.image_files import BadImage, read_image
from gfl.data.sampler import Key
from gfl.data.transforms import Augmentation, flip, keep_ratio_size, resize
from gfl.structures import SIZE_DIVISOR, Batch, Targets

IGNORED = -1  # the label of a region whose points learn nothing
WRITE_CLEAN = "; or write a json without such images: scripts/doctor.py with --write-clean OUT.json"
ONE_VIEW = EvalConfig()  # evaluation without test-time augmentation
MAX_REPLACEMENTS = 100  # images tried in place of a bad one before giving up


class Sample(NamedTuple):
    """One image, ready to be batched."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    boxes_xyxy: np.ndarray  # (n, 4) float32 pixels of `image`
    labels: np.ndarray  # (n,) int64, `IGNORED` for a region
    image_id: int
    orig_size: tuple[int, int]  # height, width of the file
    mirrored: bool = False  # by test-time augmentation
    views: Sequence["Sample"] = ()  # the other views of test-time augmentation


def size_in_eval(height: int, width: int, config: DataConfig, scale: float = 1.0) -> tuple[int, int]:
    """(height, width) to which an image is resized in evaluation, or with a `scale` of its test-time augmentation."""
    short_side, long_side = scale * config.short_side_in_eval, scale * config.long_side
    return keep_ratio_size(height, width, short_side=short_side, long_side=long_side)


def as_in_eval(sample: Sample, config: DataConfig, evaluation: EvalConfig) -> Sample:
    """`sample`, which has the pixels of its file, resized as in evaluation, with the other views if there are any.

    The first view is not mirrored; it is the one in whose pixels the detections of all views are compared.
    """
    views = []
    for scale in evaluation.tta_scales:
        image, boxes_xyxy = resize(sample.image, sample.boxes_xyxy, size_in_eval(*sample.orig_size, config, scale))
        views.append(sample._replace(image=image, boxes_xyxy=boxes_xyxy))
        if evaluation.tta_flip:
            image, boxes_xyxy = flip(image, boxes_xyxy)
            views.append(sample._replace(image=image, boxes_xyxy=boxes_xyxy, mirrored=True))
    return views[0]._replace(views=views[1:])


class CocoDataset(Dataset):
    """Images of a split by (epoch, index). Training draws scale, augmentation and flip; evaluation draws nothing."""

    def __init__(
        self,
        data: CocoData,
        config: DataConfig,
        *,
        training: bool,
        seed: int = 0,
        evaluation: EvalConfig = ONE_VIEW,
    ) -> None:
        self.data, self.config, self.evaluation = data, config, evaluation
        self.training, self.seed = training, seed
        self.mask_ignored = training and config.ignored == "mask"
        self.augmentation = Augmentation(config.augment) if training and config.augment else None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        boxes_xyxy, labels = self._boxes_of(index)
        orig_size = tuple(self.data.sizes[index].tolist())
        path = image_path(self.data, index)
        image = read_image(path, orig_size, bit_depth=self.config.bit_depth, max_pixels=self.config.max_pixels)
        sample = Sample(image, boxes_xyxy, labels, int(self.data.image_ids[index]), orig_size)
        if not self.training:
            return as_in_eval(sample, self.config, self.evaluation)
        return self._as_in_training(sample, np.random.default_rng((self.seed, epoch, index)))

    def _as_in_training(self, sample: Sample, rng: np.random.Generator) -> Sample:
        low, high = self.config.short_sides
        short_side = int(rng.integers(low, high + 1))
        size = keep_ratio_size(*sample.orig_size, short_side=short_side, long_side=self.config.long_side)
        image, boxes_xyxy = resize(sample.image, sample.boxes_xyxy, size)
        labels = sample.labels
        if self.augmentation:
            image, boxes_xyxy, labels = self.augmentation(image, boxes_xyxy, labels, rng)
        if rng.random() < self.config.flip:
            image, boxes_xyxy = flip(image, boxes_xyxy)
        return sample._replace(image=image, boxes_xyxy=boxes_xyxy, labels=labels)

    def _boxes_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) and labels (n,), with the regions to ignore where they are masked."""
        boxes_xyxy, labels = self.data.boxes_of(index)
        ignored = self.data.ignored_of(index)
        if not self.mask_ignored or not len(ignored):
            return boxes_xyxy, labels
        return np.concatenate([boxes_xyxy, ignored]), np.append(labels, np.full(len(ignored), IGNORED))


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad images to the largest height and width, rounded up to `SIZE_DIVISOR`, and boxes to the largest number."""
    sizes = np.array([sample.image.shape[:2] for sample in samples])
    height, width = -(-sizes.max(axis=0) // SIZE_DIVISOR) * SIZE_DIVISOR
    slots = max(1, *(len(sample.labels) for sample in samples))  # one empty slot where no image has a box
    images = torch.empty(len(samples), 3, int(height), int(width), dtype=torch.uint8)
    boxes_xyxy = torch.zeros(len(samples), slots, 4)
    labels = torch.zeros(len(samples), slots, dtype=torch.int64)
    valid = torch.zeros(len(samples), slots, dtype=torch.bool)
    for row, sample in enumerate(samples):
        _place(sample.image, images[row].numpy())
        count = len(sample.labels)
        boxes_xyxy[row, :count] = torch.from_numpy(sample.boxes_xyxy)
        labels[row, :count] = torch.from_numpy(sample.labels)
        valid[row, :count] = True
    ignored = valid & (labels == IGNORED)
    return Batch(
        images=images,
        image_sizes=torch.from_numpy(sizes),
        targets=Targets(boxes_xyxy, labels.clamp(min=0), valid & ~ignored, ignored if ignored.any() else None),
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        orig_sizes=torch.tensor([sample.orig_size for sample in samples]),
        mirrored=samples[0].mirrored,
        views=[collate(view) for view in zip(*(sample.views for sample in samples), strict=True)],
    )


def _place(image: np.ndarray, padded: np.ndarray) -> None:
    """Write an image (h, w, 3) into the corner of channels (3, H, W), and zeros into the rest."""
    height, width = image.shape[:2]
    cv2.split(image, list(padded[:, :height, :width]))
    padded[:, height:] = 0
    padded[:, :height, width:] = 0


class PatchedBatch(NamedTuple):
    """A batch in which bad images are replaced by others."""

    batch: Batch
    bad: dict[str, str]  # file name -> reason


class SafeDataset(Dataset):
    """Batches of a `CocoDataset` that returns a `UserError` instead of raising it.

    The loader would wrap a raised one in the traceback of its process.

    Args:
        replacements: indices of the images that may replace a bad one; None if a bad image is an error.
        hint: appended to the message of that error.
    """

    def __init__(self, dataset: CocoDataset, *, replacements: np.ndarray | None = None, hint: str = "") -> None:
        self.dataset, self.replacements, self.hint = dataset, replacements, hint
        self.bad: dict[str, str] = {}  # of the batches that the main process has seen: file name -> reason

    def __getitems__(self, keys: list[Key]) -> Batch | PatchedBatch | UserError:
        bad: dict[str, str] = {}
        try:
            batch = collate([self._sample(key, bad) for key in keys])
        except UserError as error:
            return error
        return PatchedBatch(batch, bad) if bad else batch

    def _sample(self, key: Key, bad: dict[str, str]) -> Sample:
        """The sample of `key`, or of its first good replacement; bad images are added to `bad`."""
        for candidate in self._replacement_keys(key):
            try:
                return self.dataset[candidate]
            except BadImage as error:
                if self.replacements is None:
                    raise BadImage(f"{error}{WRITE_CLEAN}{self.hint}", code=error.code) from None
                bad[str(self.dataset.data.file_names[candidate[1]])] = reason = str(error)
        raise UserError(
            f"data.on_bad_image=skip found nothing but bad images, {len(bad)} in a row; the last: {reason}",
            code="only_bad_images",
        )

    def _replacement_keys(self, key: Key) -> Iterator[Key]:
        """`key`, then its replacements: a pure function of the seed and the key, like everything in a sample."""
        yield key
        rng = np.random.default_rng((self.dataset.seed, *key, 1))
        for index in rng.permutation(self.replacements)[:MAX_REPLACEMENTS]:
            yield key[0], int(index)
