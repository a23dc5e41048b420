"""Pascal VOC's layout: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt.

Other tools write one xml per image, but choose other folders and no splits: then the folders are given, and
`random_splits` divides the images.

The devkit's corners count pixels from 1, and the far one is the last pixel of the box: a box over a whole image of
W x H is (1, 1, W, H). As edges, which COCO-format json has, that is (0, 0, W, H): 1 is taken off the near corner only.
Many other tools write edges into the same tags; `zero_based` takes theirs as they are.

VOC's evaluation neither requires objects marked `difficult` to be found nor counts their detections as wrong. COCO's
does the same with `iscrowd`, so they become crowd boxes, which training leaves out. (The overlap with a crowd box is
relative to the detection alone, so a few more detections are ignored than by VOC.)
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gfl.common.errors import UserError
from gfl.common.text import shell_command
from gfl.data.image_files import check_file_name, is_image
from gfl.tools.prepare.faults import Faults
from gfl.tools.prepare.find_files import Folders, count_note, folder_overview, spelling_key, unknown_files, walk
from gfl.tools.prepare.to_coco import BoxAdjustments, ImageRecord, Progress, Split, read_lines
from gfl.tools.prepare.voc_xml import XmlNotes, annotated_size, parse_xml, read_object


@dataclass(frozen=True)
class VocFolders:
    """Where a data set has its files."""

    root: Path
    images: str = "JPEGImages"  # relative to the root
    annotations: str = "Annotations"

    @property
    def image_folder(self) -> Path:
        return self.root / self.images

    @property
    def xml_folder(self) -> Path:
        return self.root / self.annotations


def read_voc(
    voc: VocFolders,
    splits: Mapping[str, Sequence[str]],
    *,
    zero_based: bool = False,
    progress: Progress = iter,
) -> list[Split]:
    """The images of some splits, name -> image names without suffix; a box's category is its class name.

    Raises `UserError` that names the files, and the objects, that cannot be used: all of one kind at once.
    """
    faults, folders, result = Faults(), Folders(), []
    for split, names in splits.items():
        adjustments, xml_notes, images = BoxAdjustments(), XmlNotes(), []
        for name in progress(sorted(names)):
            with faults.collect(f"{name}.xml", "xml"):
                images.append(_read_image(voc, name, zero_based, folders, faults, adjustments, xml_notes))
        notes = adjustments.notes()
        if adjustments.clipped and not zero_based:
            notes += ("if they have corners at 0, these files may count from 0: then convert with --zero-based",)
        result.append(Split(split, voc.image_folder, sorted(images), notes + xml_notes.notes()))
    faults.raise_if_any()
    return result


def class_names(splits: Sequence[Split], wanted: Sequence[str] | None = None) -> dict[str, str]:
    """The categories of some splits: those in `wanted`, or all that occur, in alphabetical order.

    Raises `UserError` if a class occurs that is not in `wanted`, or if none occurs.
    """
    found = {box.category: split.name for split in splits for box in split.boxes}
    if unknown := sorted(found.keys() - set(wanted or found)):
        raise UserError(f"split {found[unknown[0]]}: class {unknown[0]!r} is not among --classes {' '.join(wanted)}")
    names = list(dict.fromkeys(wanted or sorted(found)))
    if not names:
        notes = "; ".join(note for split in splits for note in split.notes)
        raise UserError(
            "no image has a box, so there are no classes; name them with --classes" + (f"; {notes}" if notes else ""),
            code="no_classes",
        )
    return {name: name for name in names}


def listed_splits(voc: VocFolders, names: Sequence[str]) -> dict[str, list[str]]:
    """Image names of the splits that ImageSets/Main/<split>.txt lists, one a line.

    Raises `UserError` that names the lines that cannot be used, or what the folder has instead of these files.
    """
    folder = voc.root / "ImageSets" / "Main"
    if not folder.is_dir():
        raise UserError(f"there is no {folder / names[0]}.txt; {_advice(voc.root)}", code="no_splits")
    faults = Faults()
    splits = {}
    for name in names:
        path = folder / f"{name}.txt"
        with faults.collect(path, "split"):
            splits[name] = _read_image_names(path, faults)
    faults.raise_if_any()
    return splits


def _read_image_names(path: Path, faults: Faults) -> list[str]:
    lines: dict[str, int] = {}
    for line, name in read_lines(path):
        name = name.rsplit(".", 1)[0] if is_image(name) else name
        with faults.collect(f"line {line}", "repeated"):
            check_file_name(name, f"{path} line {line}")
            if name in lines:
                raise UserError(f"{path} line {line}: {name!r:.80} is also in line {lines[name]}; remove one")
            lines[name] = line
    if not lines:
        raise UserError(f"{path} lists no images")
    return list(lines)


def random_splits(
    voc: VocFolders, names: Sequence[str], val_share: float, seed: int
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """All images that have an xml, divided at random, and notes on files that have no counterpart.

    Args:
        names: of the training and the validation split; of one split if `val_share` is 0.
        val_share: of the images in the validation split, at least one.
        seed: the same seed and file names give the same splits.
    """
    for folder in (voc.xml_folder, voc.image_folder):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; {_advice(voc.root)}", code="no_folder")
    xml = _stems(voc.xml_folder, lambda path: path.suffix.lower() == ".xml")
    images = _as_spelled(_stems(voc.image_folder, is_image), xml)
    both = sorted(xml.keys() & images.keys())
    if len(both) < len(names):
        found = f"{len(both)} images of {voc.image_folder} have an xml of their name in {voc.xml_folder}"
        raise UserError(f"{found}; {_advice(voc.root)}", code="no_pairs")
    notes = (
        *count_note([xml[name] for name in sorted(xml.keys() - images.keys())], "xml files have no image"),
        *count_note([images[name] for name in sorted(images.keys() - xml.keys())], "images have no xml"),
        *count_note(unknown_files(voc.image_folder), "files beside the images have no suffix of an image"),
    )
    notes = tuple(f"{note}; left out" for note in notes)
    if len(names) == 1:
        return {names[0]: both}, notes
    num_val = min(max(round(val_share * len(both)), 1), len(both) - 1)
    val = set(random.Random(seed).sample(both, num_val))
    return {names[0]: [name for name in both if name not in val], names[1]: sorted(val)}, notes


def _stems(folder: Path, wanted: Callable[[Path], bool]) -> dict[str, Path]:
    """Files below a folder by their relative name without suffix."""
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in walk(folder) if wanted(file)}


def _as_spelled(files: dict[str, Path], names: Iterable[str]) -> dict[str, Path]:
    """The files under those of `names` that differ in the letter case or Unicode form of the file's name only."""
    wanted = {_folder_and_key(name): name for name in names if name not in files}
    taken = set(names)
    return {name if name in taken else wanted.get(_folder_and_key(name), name): path for name, path in files.items()}


def _folder_and_key(name: str) -> tuple[str, str]:
    folder, _, stem = name.rpartition("/")
    return folder, spelling_key(stem)


def unlisted_note(voc: VocFolders, splits: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A sentence on xml files that no list of ImageSets/Main names."""
    listed = {name for names in splits.values() for name in names}
    for path in (voc.root / "ImageSets" / "Main").glob("*.txt"):
        with contextlib.suppress(UserError):  # not one of the splits
            listed |= {name for _, line in read_lines(path) for name in (line, line.split()[0])}
    xml = _stems(voc.xml_folder, lambda path: path.suffix.lower() == ".xml")
    return count_note([xml[name] for name in sorted(xml.keys() - listed)], "xml files are in no list of ImageSets/Main")


def _advice(root: Path) -> str:
    """What to do about missing folders or splits, by what is in the folder."""
    if not root.is_dir():
        return f"{root} is no folder"
    if devkits := sorted(path for level in ("*", "*/*") for path in root.glob(f"{level}/ImageSets/Main")):
        return f"the data set is in {devkits[0].parent.parent}; give that folder"
    found = folder_overview(root)
    if not found:
        return f"{root} has no xml files or images; give the folder that has them"
    text = ", ".join(f"{name} ({xml} xml, {images} images)" for name, (xml, images) in list(found.items())[:6])
    complete = [name for name, counts in found.items() if min(counts)]
    if len(complete) > 1:
        both = Path(complete[0])
        words = shell_command("--images", both, "--annotations", both, "--val-share", "0", "--splits", "train")
        return f"found are {text}; if each folder is a split, convert one at a time, with the same --classes: {words}"
    xml, images = (max(found, key=lambda name: found[name][kind]) for kind in (0, 1))
    if not found[xml][0] or not found[images][1]:
        return f"found are {text}; give the folder that has both xml files and images"
    folders = ("--images", Path(images), "--annotations", Path(xml))
    words = shell_command(*folders, "--val-share", "0.2", "--seed", "0")
    return f"found are {text}; divide them with {words}"


def _read_image(
    voc: VocFolders,
    name: str,
    zero_based: bool,
    folders: Folders,
    faults: Faults,
    adjustments: BoxAdjustments,
    xml_notes: XmlNotes,
) -> ImageRecord:
    xml = voc.xml_folder / f"{name}.xml"
    xml = folders.same_name(xml) or xml
    node = parse_xml(xml)
    found = folders.images_of(voc.image_folder / name)
    if len(found) != 1:
        # <filename> is not used: it is often the name from before the files were renamed
        what = f"both {found[0].name} and {found[1].name}" if found else f"no {name}.jpg, or with another suffix,"
        raise UserError(
            f"{xml}: there is {what} in {voc.image_folder}; it needs exactly one image", code="number_of_images"
        )
    size = annotated_size(node, xml, found[0], xml_notes)
    boxes = []
    for position, entry in enumerate(node.iterfind("object"), 1):
        with faults.collect(f"{name}.xml: object {position}", "object"):
            boxes += read_object(entry, f"{xml}: object {position}", size, zero_based, adjustments, xml_notes)
    return ImageRecord(found[0].relative_to(voc.image_folder).as_posix(), *size, boxes)
