"""Every image file of a split, decoded by many processes: missing pixels, wrong sizes, rotation, copies."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from gfl.common.errors import UserError
from gfl.common.findings import Finding, finding
from gfl.data.coco import CocoData, image_path
from gfl.data.image_files import exif_orientation, read_image

CHUNK = 16  # images per message from a process
COMPLAINTS = (b"Corrupt JPEG", b"Premature end of JPEG")  # of the decoder, on files that it reads nevertheless


class Picture(NamedTuple):
    """What one file turned out to be."""

    problem: str = ""  # "damaged" or "size": training would stop here
    reason: str = ""  # what it would say
    digest: str = ""  # of the upright pixels; equal for copies, also in another lossless format or with other metadata
    rotation: str = ""  # "unrotated": the json has the size before EXIF rotation; "ambiguous": it cannot tell
    complaint: str = ""  # what the decoder said


def look_at(path: Path, size: tuple[int, int]) -> Picture:
    """Read a file exactly as training does; `size` is the (height, width) of the json."""
    with _complaints() as heard:
        try:
            image = read_image(path)
        except UserError as error:
            return Picture("damaged", str(error))
    complaint, rotation = heard[0], ""
    if image.shape[:2] != size:
        try:
            image, rotation = read_image(path, size), "unrotated"
        except UserError as error:
            return Picture("size", str(error), complaint=complaint)
    elif (orientation := exif_orientation(path)) in (2, 3, 4) or (orientation > 4 and size[0] == size[1]):
        rotation = "ambiguous"
    pixels = np.ascontiguousarray(image)
    digest = hashlib.blake2b(pixels, digest_size=16, key=repr(pixels.shape).encode()).hexdigest()
    return Picture(digest=digest, rotation=rotation, complaint=complaint)


@contextlib.contextmanager
def _complaints():
    """A list that will hold what libraries in C write to stderr meanwhile, if it is about corrupt data.

    Decoders tell of it in no other way, and their lines would disturb the terminal.
    """
    heard = [""]
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield heard
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines = [line for line in file.read().splitlines() if any(text in line for text in COMPLAINTS)]
            heard[0] = lines[0].decode(errors="replace") if lines else ""


class _Files:
    """A data set for `DataLoader`, whose processes notice when this one or one of them has died."""

    def __init__(self, data: CocoData, rows: Sequence[int]) -> None:
        self.data, self.rows = data, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Picture:
        row = self.rows[index]
        return look_at(image_path(self.data, row), tuple(self.data.sizes[row].tolist()))


def look_at_all(data: CocoData, *, on_pictures: Callable[[int], object] = lambda count: None) -> dict[int, Picture]:
    """Index of image -> `Picture`, on all cores; a file that the json names twice is looked at once.

    Raises `UserError` if a process dies.
    """
    rows = [int(row) for row in np.unique(data.file_names, return_index=True)[1]]
    rows.sort()
    cores = min(len(os.sched_getaffinity(0)), -(-len(rows) // CHUNK))
    loader = DataLoader(
        _Files(data, rows), batch_size=CHUNK, num_workers=cores, collate_fn=list, worker_init_fn=_leave_ctrl_c_to_main
    )
    found: list[Picture] = []
    others = set(multiprocessing.active_children())
    try:
        for pictures in loader:
            found += pictures
            on_pictures(len(pictures))
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # or the loader gives each some seconds to finish
        if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
            raise
        path = image_path(data, rows[len(found)])
        raise UserError(f"a process died decoding {path} or one of the images after it; look at that file") from None
    return dict(zip(rows, found, strict=True))


def _leave_ctrl_c_to_main(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def picture_findings(data: CocoData, pictures: dict[int, Picture]) -> list[Finding]:
    """What is wrong with the files of one split."""

    def those(field: str, *values: str) -> tuple[list[str], list[str]]:
        """Names of the files with one of these values, or with any, and the reasons."""
        chosen = {
            row: p for row, p in pictures.items() if (getattr(p, field) in values if values else getattr(p, field))
        }
        return [str(data.file_names[row]) for row in chosen], [p.reason or p.complaint for p in chosen.values()]

    unrotated, ambiguous = those("rotation", "unrotated")[0], those("rotation", "ambiguous")[0]
    copies = [" = ".join(names) for names in _by_digest(data, pictures).values() if len(names) > 1]
    return [
        *finding("error", "damaged or unreadable images", "restore or leave out", *those("problem", "damaged")),
        *finding("error", "images of another size than the json's", "correct json or file", *those("problem", "size")),
        *finding("warning", "images with corrupt parts", "read with wrong pixels", *those("complaint")),
        *finding("warning", "EXIF-rotated images, json's size unrotated", "read unrotated; check boxes", unrotated),
        *finding("warning", "EXIF-rotated images, same size both ways", "read upright; check boxes", ambiguous),
        *finding("warning", "images under several names", "leave copies out", copies),
    ]


def shared_pictures(
    train: CocoData, train_pictures: dict[int, Picture], val: CocoData, val_pictures: dict[int, Picture]
) -> list[Finding]:
    """Pictures that are in both splits, by their pixels."""
    in_train, in_val = _by_digest(train, train_pictures), _by_digest(val, val_pictures)
    both = [f"{names[0]} = {in_train[digest][0]}" for digest, names in in_val.items() if digest in in_train]
    return finding("warning", "val images that are also in train", "AP is too good; leave them out", both)


def _by_digest(data: CocoData, pictures: dict[int, Picture]) -> dict[str, list[str]]:
    """Digest of the pixels -> names of the files."""
    groups = defaultdict(list)
    for row, picture in pictures.items():
        if picture.digest:
            groups[picture.digest].append(str(data.file_names[row]))
    return groups
