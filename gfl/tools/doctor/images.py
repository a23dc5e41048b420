"""Every image file of a split, decoded by many processes: missing pixels, wrong sizes, rotation, copies."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from gfl.common.errors import UserError
from gfl.common.findings import Finding, finding_if_any
from gfl.data.coco import CocoData, image_path
from gfl.data.image_files import TRANSPOSED, exif_orientation, read_image
from gfl.data.loader import worker_died

CHUNK = 16  # images per message from a process
DECODER_WARNINGS = (b"Corrupt JPEG", b"Premature end of JPEG")  # about files that are read nevertheless


class InspectedImage(NamedTuple):
    """The state of one image file."""

    problem: str = ""  # "damaged" or "size": training would stop here
    reason: str = ""  # with this message
    digest: str = ""  # of the upright pixels; equal for copies, also in another lossless format or with other metadata
    rotation: str = ""  # "unrotated": the json has the size before EXIF rotation; "ambiguous": both sizes are equal
    decoder_warning: str = ""  # that parts of the file are corrupt


def inspect_image(path: Path, size: tuple[int, int]) -> InspectedImage:
    """Read a file exactly as training does; `size` is the (height, width) of the json."""
    with _decoder_warnings() as warnings:
        try:
            image = read_image(path)
        except UserError as error:
            return InspectedImage("damaged", str(error))
    warning, rotation = "".join(warnings[:1]), ""
    if image.shape[:2] != size:
        try:
            image, rotation = read_image(path, size), "unrotated"
        except UserError as error:
            return InspectedImage("size", str(error), decoder_warning=warning)
    elif (orientation := exif_orientation(path)) in (2, 3, 4) or (orientation in TRANSPOSED and size[0] == size[1]):
        rotation = "ambiguous"
    pixels = np.ascontiguousarray(image)
    digest = hashlib.blake2b(pixels, digest_size=16, key=repr(pixels.shape).encode()).hexdigest()
    return InspectedImage(digest=digest, rotation=rotation, decoder_warning=warning)


@contextlib.contextmanager
def _decoder_warnings() -> Iterator[list[str]]:
    """A list that is filled at the end with the lines about corrupt data that C libraries wrote to stderr.

    Decoders report it in no other way, and their lines would disturb the terminal.
    """
    found: list[str] = []
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            lines = [line for line in file.read().splitlines() if any(text in line for text in DECODER_WARNINGS)]
            found += [line.decode(errors="replace") for line in lines]


class _ImageFiles:
    """A data set for `DataLoader`, which notices when one of its processes dies."""

    def __init__(self, data: CocoData, rows: Sequence[int]) -> None:
        self.data, self.rows = data, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> InspectedImage:
        row = self.rows[index]
        return inspect_image(image_path(self.data, row), tuple(self.data.sizes[row].tolist()))


def inspect_images(
    data: CocoData, *, on_images: Callable[[int], object] = lambda count: None
) -> dict[int, InspectedImage]:
    """Index of image -> `InspectedImage`, on all cores; a file that the json names twice is read once.

    Args:
        on_images: called with the number of images in each chunk that is done.

    Raises `UserError` if a process dies.
    """
    rows = sorted(np.unique(data.file_names, return_index=True)[1].tolist())
    workers = min(len(os.sched_getaffinity(0)), -(-len(rows) // CHUNK))
    loader = DataLoader(
        _ImageFiles(data, rows),
        batch_size=CHUNK,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_ignore_interrupts,
    )
    inspected: list[InspectedImage] = []
    others = set(multiprocessing.active_children())
    try:
        for chunk in loader:
            inspected += chunk
            on_images(len(chunk))
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # otherwise the loader gives each some seconds to finish
        if not worker_died(error):
            raise
        path = image_path(data, rows[len(inspected)])
        raise UserError(
            f"a process died decoding {path} or one of the images after it; check these files", code="loader_died"
        ) from None
    return dict(zip(rows, inspected, strict=True))


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process


def image_findings(data: CocoData, inspected: dict[int, InspectedImage]) -> list[Finding]:
    """Findings on the image files of one split."""

    def select(test: Callable[[InspectedImage], object]) -> tuple[list[str], list[str]]:
        """Names of the files that `test` selects, and the reasons."""
        selected = {row: image for row, image in inspected.items() if test(image)}
        names = [str(data.file_names[row]) for row in selected]
        return names, [image.reason or image.decoder_warning for image in selected.values()]

    damaged = select(lambda image: image.problem == "damaged")
    other_size = select(lambda image: image.problem == "size")
    corrupt = select(lambda image: image.decoder_warning)
    unrotated, _ = select(lambda image: image.rotation == "unrotated")
    ambiguous, _ = select(lambda image: image.rotation == "ambiguous")
    copies = [" = ".join(names) for names in _names_by_digest(data, inspected).values() if len(names) > 1]
    return [
        *finding_if_any("error", "damaged or unreadable images", "restore, or --leave-out OUT.json", *damaged),
        *finding_if_any(
            "error",
            "images of another size than the json's",
            "correct, or --leave-out OUT.json",
            *other_size,
        ),
        *finding_if_any("warning", "images with corrupt parts", "read with wrong pixels", *corrupt),
        *finding_if_any(
            "warning", "EXIF-rotated images, json's size unrotated", "read as stored; check boxes", unrotated
        ),
        *finding_if_any("warning", "EXIF-rotated images, same size both ways", "read upright; check boxes", ambiguous),
        *finding_if_any("warning", "images under several names", "leave copies out", copies),
    ]


def shared_image_findings(
    train: CocoData, train_images: dict[int, InspectedImage], val: CocoData, val_images: dict[int, InspectedImage]
) -> list[Finding]:
    """Images that are in both splits, by their pixels."""
    in_train, in_val = _names_by_digest(train, train_images), _names_by_digest(val, val_images)
    both = [f"{names[0]} = {in_train[digest][0]}" for digest, names in in_val.items() if digest in in_train]
    return finding_if_any("warning", "val images that are also in train", "AP is too high; leave them out", both)


def _names_by_digest(data: CocoData, inspected: dict[int, InspectedImage]) -> dict[str, list[str]]:
    """Digest of the pixels -> names of the files."""
    groups = defaultdict(list)
    for row, image in inspected.items():
        if image.digest:
            groups[image.digest].append(str(data.file_names[row]))
    return groups
