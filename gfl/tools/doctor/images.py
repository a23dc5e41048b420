"""Every image file of a split, decoded by many processes: missing pixels, wrong sizes, rotation."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from gfl.common.errors import UserError
from gfl.common.findings import Finding, finding_if_any
from gfl.common.text import list_some
from gfl.config import DataConfig
from gfl.data.coco import CocoData, image_path
from gfl.data.file_names import find_spellings, write_clean_command
from gfl.data.image_errors import MAX_CHANNELS
from gfl.data.image_files import (
    BitDepth,
    find_images,
    image_sizes,
    positional,
    range_option,
    read_image,
    scale_limits,
    value_range,
)
from gfl.data.loader import worker_died
from gfl.data.orientation import TRANSPOSED, read_orientation
from gfl.tools.near_duplicates import image_hash

MIN_SHARE_OF_RANGE = 0.5  # of 16 bits, below which the values in use are called few
DEFAULTS = DataConfig()
FileAndSize = tuple[str, int, int]  # file name, and height and width by the json
CHUNK = 16  # images per message from a process
RESTORE = "restore or leave out"
DAMAGED = ("damaged or unreadable images", RESTORE)
UNREADABLE = {  # code of the error: what, advice
    "truncated": ("images whose end is missing", RESTORE),
    "empty_image": ("images of 0 bytes", RESTORE),
    "not_an_image": ("files that are no images", RESTORE),
    "video": ("videos", "extract their frames"),
    "heic": ("HEIC images", "convert to JPEG or PNG"),
    "format": ("images of a format that is not read", "convert to PNG"),
    "channels": (f"TIFF images of more than {MAX_CHANNELS} channels", "convert to three channels"),
    "too_many_pixels": ("images above the limit of pixels", "cut into tiles, or raise data.max_pixels"),
    "out_of_memory": ("images too large for the memory", "cut into tiles"),
}
DECODER_WARNINGS = (b"Corrupt JPEG", b"Premature end of JPEG")  # about files that are read nevertheless


class InspectedImage(NamedTuple):
    """The state of one image file."""

    problem: str = ""  # "unreadable" or "size": training would stop here
    reason: str = ""  # with this message
    digest: str = ""  # of the upright pixels; equal for copies, also in another lossless format or with other metadata
    hash: bytes = b""  # of `near_duplicates`, where it was asked for
    rotation: str = ""  # "unrotated": the json has the size before EXIF rotation; "ambiguous": both sizes are equal
    decoder_warning: str = ""  # that parts of the file are corrupt
    values: tuple[str, float, float] | None = None  # type, lowest and highest, of more than 8 bits
    code: str = ""  # of the error


def inspect_image(
    path: Path, size: tuple[int, int], config: DataConfig = DEFAULTS, *, with_hash: bool = False
) -> InspectedImage:
    """Read a file exactly as training does; `size` is the (height, width) of the json."""
    with _decoder_warnings() as warnings:
        try:
            image = read_image(path, size, bit_depth=config.bit_depth, max_pixels=config.max_pixels)
            values = value_range(path)
        except UserError as error:
            problem = "size" if error.code == "image_size" else "unreadable"
            values = value_range(path) if error.code == "pixel_type" else None
            return InspectedImage(problem, str(error), code=error.code, values=values)
    warning, rotation = "".join(warnings[:1]), ""
    if image_sizes(path)[0] != size[::-1]:
        rotation = "unrotated"
    elif _looks_the_same_turned(read_orientation(path.read_bytes()), size):
        rotation = "ambiguous"
    pixels = np.ascontiguousarray(image)
    digest = hashlib.blake2b(pixels, digest_size=16, key=repr(pixels.shape).encode()).hexdigest()
    near = image_hash(pixels) if with_hash else b""
    return InspectedImage(digest=digest, hash=near, rotation=rotation, decoder_warning=warning, values=values)


def _looks_the_same_turned(orientation: int, size: tuple[int, int]) -> bool:
    """Whether an image has the same size upright and as stored although it is turned."""
    return orientation in (2, 3, 4) or (orientation in TRANSPOSED and size[0] == size[1])


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

    def __init__(self, data: CocoData, rows: Sequence[int], config: DataConfig, with_hashes: bool) -> None:
        self.data, self.rows, self.config, self.with_hashes = data, rows, config, with_hashes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> InspectedImage:
        row = self.rows[index]
        size = tuple(self.data.sizes[row].tolist())
        return inspect_image(image_path(self.data, row), size, self.config, with_hash=self.with_hashes)


def inspect_images(
    data: CocoData,
    *,
    config: DataConfig = DEFAULTS,
    with_hashes: bool = False,
    on_images: Callable[[int], object] = lambda count: None,
) -> dict[int, InspectedImage]:
    """Index of image -> `InspectedImage`, on all cores; a file that the json names twice with one size is read once.

    Args:
        config: of the data; its `bit_depth` and `max_pixels` count.
        with_hashes: compute the hashes of `near_duplicates`, which takes up to half as long as decoding.
        on_images: called with the number of images in each chunk that is done.

    Raises `UserError` if a process dies.
    """
    rows = distinct_files(data)
    workers = min(len(os.sched_getaffinity(0)), -(-len(rows) // CHUNK))
    loader = DataLoader(
        _ImageFiles(data, rows, config, with_hashes),
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


def distinct_files(data: CocoData) -> list[int]:
    """The first image of each file and size; entries of one file may give it different sizes."""
    first: dict[FileAndSize, int] = {}
    for row in range(len(data)):
        first.setdefault(file_and_size(data, row), row)
    return list(first.values())


def file_and_size(data: CocoData, row: int) -> FileAndSize:
    """What decides whether image `row` can be read."""
    return str(data.file_names[row]), *data.sizes[row].tolist()


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process


def image_findings(data: CocoData, inspected: dict[int, InspectedImage], bit_depth: BitDepth = 0) -> list[Finding]:
    """Findings on the image files of one split."""

    def select(test: Callable[[InspectedImage], object]) -> tuple[list[str], list[str]]:
        """Names of the files that `test` selects, and the reasons."""
        selected = {row: image for row, image in inspected.items() if test(image)}
        names = [str(data.file_names[row]) for row in selected]
        return names, [image.reason or image.decoder_warning for image in selected.values()]

    write_clean = write_clean_command(data.annotations, data.root)
    unreadable = []
    codes = {image.code for image in inspected.values() if image.problem == "unreadable"}
    for code in sorted(codes - {"pixel_type"}):  # which is a finding on depth
        what, advice = UNREADABLE.get(code, DAMAGED)
        command = write_clean if advice == RESTORE else ""
        unreadable += finding_if_any("error", what, advice, *select(lambda image, c=code: image.code == c), command)
    other_size = select(lambda image: image.problem == "size")
    what = "images of another size than the json's"
    wrong_size = finding_if_any("error", what, "correct or leave out", *other_size, write_clean)
    corrupt = select(lambda image: image.decoder_warning)
    unrotated, _ = select(lambda image: image.rotation == "unrotated")
    ambiguous, _ = select(lambda image: image.rotation == "ambiguous")
    return [
        *unreadable,
        *wrong_size,
        *finding_if_any("warning", "images with corrupt parts", "read with wrong pixels", *corrupt),
        *finding_if_any(
            "warning", "rotated images (EXIF, XMP), json's size unrotated", "read as stored; check boxes", unrotated
        ),
        *finding_if_any(
            "warning", "rotated images (EXIF, XMP), same size both ways", "read upright; check boxes", ambiguous
        ),
        *_depth_findings(data, inspected, bit_depth),
    ]


def _depth_findings(data: CocoData, inspected: dict[int, InspectedImage], bit_depth: BitDepth) -> list[Finding]:
    """Per type of pixels with more than 8 bits, the range of values in use and what becomes of it."""
    findings = []
    for kind in sorted({image.values[0] for image in inspected.values() if image.values}):
        rows = [row for row, image in inspected.items() if image.values and image.values[0] == kind]
        low = min(inspected[row].values[1] for row in rows)
        high = max(inspected[row].values[2] for row in rows)
        refused = any(inspected[row].problem == "unreadable" for row in rows)
        level, advice = _depth_advice(kind, low, high, bit_depth, refused)
        what = f"{kind} images, values {positional(low)} to {positional(high)} in use"
        findings += finding_if_any(level, what, advice, [str(data.file_names[row]) for row in rows])
    return findings


def _depth_advice(kind: str, low: float, high: float, bit_depth: BitDepth, refused: bool) -> tuple[str, str]:
    """Level and advice for values from `low` to `high`."""
    if refused:
        return "error", f"need a scale to become 8 bits; set {range_option(low, high)}"
    if bit_depth:
        first, last = scale_limits(bit_depth)
        clipped = low < first or high > last
        return (
            "warning" if clipped else "ok",
            f"data.bit_depth makes {positional(first)} to {positional(last)} 0 to 255"
            + ("; values outside are clipped" if clipped else ""),
        )
    if kind != "uint16":
        return (
            "warning",
            f"only the 8 highest bits are read; {range_option(low, high)} scales them",
        )
    read = f"read as {low // 256:g} to {high // 256:g} of 255"
    if high - low >= MIN_SHARE_OF_RANGE * 65535:
        return "ok", f"{read}; data.bit_depth scales them otherwise"
    depth = max(8, int(high).bit_length())
    option = f"data.bit_depth={depth}" if low < high / 2 else range_option(low, high)
    return "warning", f"{read}; {option} scales them"


def unlisted_image_findings(trees: Sequence[dict], roots: Sequence[str]) -> list[list[Finding]]:
    """Per split, the images in its folder and below that none of the jsons names; each is reported once.

    A file that a json names under another spelling is named.
    """
    named = {
        os.path.abspath(os.path.join(root, name))
        for tree, root in zip(trees, roots, strict=True)
        for name in _names_and_spellings(tree, root)
    }
    findings = []
    for root in roots:
        paths = [str(path) for path in find_images(Path(os.path.abspath(root))) if str(path) not in named]
        named.update(paths)
        names = [os.path.relpath(path, root) for path in paths]
        what = f"images in the folder that no json names ({list_some(names)})"
        findings.append(finding_if_any("ok", what, "not used", names))
    return findings


def _names_and_spellings(tree: dict, root: str) -> set[str]:
    """The file names of a json, whose entries may still be anything, and the files that misspelt ones can mean."""
    entries = (entry.get("file_name") for entry in tree["images"] if isinstance(entry, dict))
    names = {name for name in entries if isinstance(name, str)}
    missing = {name for name in names if "\0" in name or not os.path.isfile(os.path.join(root, name))}
    return names | set(find_spellings(root, missing, names - missing).values()) if missing else names
