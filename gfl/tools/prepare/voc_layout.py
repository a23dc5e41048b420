"""Which split each image of a set is in, by lists or folders, and which xml belongs to it.

An xml belongs to the image of its own name; its <filename> is not used, since it is often the name on another machine
or from before the files were renamed. A set without lists and without folders that are named like splits is one part.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gfl.common.errors import UserError
from gfl.common.text import list_some
from gfl.data.image_files import check_file_name, is_image
from gfl.tools.prepare.faults import Faults
from gfl.tools.prepare.find_files import Folders, count_note, spelling_key, unknown_files, walk
from gfl.tools.prepare.to_coco import read_lines
from gfl.tools.prepare.voc_folders import (
    VocFolders,
    find_folders,
    is_xml,
    overview,
    pairs_below,
    voc_command,
)

SPLIT_NAMES = ("train", "val", "valid", "validation", "test")  # of folders that are splits
LIKE_SPLITS = {*SPLIT_NAMES, "training", "testing"}
CLASS_LIST = re.compile(r".+_(train|val|trainval|test)")  # a list of the images that have one class


class Part(NamedTuple):
    """The images of one split, or of a set that is to be divided."""

    name: str
    folders: VocFolders
    names: Sequence[str]  # of the images, without suffix, relative to their folder
    notes: tuple[str, ...] = ()


def find_splits(
    root: Path, images: str | None, annotations: str | None, wanted: Sequence[str] | None
) -> tuple[list[Part], bool]:
    """The splits of a set by its lists or folders, and True; or else all of its images as one part, and False.

    Args:
        images, annotations: folders relative to `root`; None to search for them.
        wanted: names of splits; None for train and val in lists, and for all folders that are named like splits.

    Raises `UserError` that says what was found and ends with a command.
    """
    if lists := _list_names(root, wanted):
        names = wanted or (("train", "val") if len(lists) > 1 else lists)  # one list, whatever its name, is no division
        parts = listed_parts(find_folders(root, images, annotations), names, lists)
        return parts, bool(wanted) or len(lists) > 1
    by_folder = _split_folders(root, images, annotations)
    if wanted and not set(wanted) <= by_folder.keys():
        has = f"it has the folders {', '.join(by_folder)}" if by_folder else "it has no ImageSets/Main"
        command = voc_command(root, "--val-share", "0.2", "--seed", "0")
        raise UserError(
            f"{root}: no split {list_some(wanted)}; {has}; to divide all images: {command}", code="no_splits"
        )
    if by_folder:
        chosen = {name: by_folder[name] for name in wanted or by_folder}
        parts = [paired_part(name, folders) for name, folders in chosen.items()]
        trees = [folders.xml_folder for folders in by_folder.values()]
        others = [file for file in walk(root) if is_xml(file) and not any(map(file.is_relative_to, trees))]
        note = count_note(others, "xml files are in no folder of a split and were left out")
        return [parts[0]._replace(notes=parts[0].notes + note), *parts[1:]], True
    part = paired_part("all", find_folders(root, images, annotations))
    return [part._replace(notes=part.notes + _mixed_folders_note(part.names))], False


def _mixed_folders_note(names: Sequence[str]) -> tuple[str, ...]:
    """A sentence on folders that are named like splits, where images of all of them are one part."""
    folders = {folder.as_posix(): folder.name for name in names for folder in PurePosixPath(name).parents}
    found = sorted(folder for folder, name in folders.items() if name.casefold() in LIKE_SPLITS)
    advice = "are not at one level and were not used as splits; convert each by itself if they are"
    return (f"the folders {list_some(found)} {advice}",) if found else ()


def _lists_folder(root: Path) -> Path:
    return root / "ImageSets" / "Main"


def _list_names(root: Path, wanted: Sequence[str] | None) -> list[str]:
    """The lists of images, those for training first; those of one class only if they are wanted, or no others exist."""
    stems = [path.stem for path in _lists_folder(root).glob("*.txt")]
    chosen = [stem for stem in stems if stem in (wanted or ()) or not CLASS_LIST.fullmatch(stem)]
    return sorted(chosen or stems, key=lambda stem: ("train" not in stem, stem))


def listed_parts(folders: VocFolders, names: Sequence[str], lists: Sequence[str]) -> list[Part]:
    """The splits `names`, each of whose lists ImageSets/Main/<name>.txt has one image a line.

    Raises `UserError` that names the lists or the lines that cannot be used.
    """
    if missing := [name for name in names if name not in lists]:
        command = voc_command(folders.root, "--splits", *lists[:2])
        where = _lists_folder(folders.root)
        raise UserError(
            f"{where} has no {missing[0]}.txt but {', '.join(lists)}; choose with --splits, such as: {command}",
            code="no_splits",
        )
    faults, parts = Faults(), []
    for name in names:
        path = _lists_folder(folders.root) / f"{name}.txt"
        with faults.collect(path, "split"):
            parts.append(Part(name, folders, _read_image_names(path, faults)))
    faults.raise_if_any()
    return [parts[0]._replace(notes=_unlisted_note(folders, parts)), *parts[1:]]


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


def _unlisted_note(folders: VocFolders, parts: Sequence[Part]) -> tuple[str, ...]:
    """A sentence on xml files that no list of ImageSets/Main names."""
    listed = {name for part in parts for name in part.names}
    for path in _lists_folder(folders.root).glob("*.txt"):
        with contextlib.suppress(UserError):  # not one of the splits
            listed |= {name for _, line in read_lines(path) for name in (line, line.split()[0])}
    xml = _stems(folders.xml_folder, is_xml)
    return count_note([xml[name] for name in sorted(xml.keys() - listed)], "xml files are in no list of ImageSets/Main")


def paired_part(name: str, folders: VocFolders) -> Part:
    """All images that have an xml of their name, and notes on files that have no counterpart."""
    for folder in (folders.xml_folder, folders.image_folder):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; {overview(folders.root)}", code="no_folder")
    xml = _stems(folders.xml_folder, is_xml)
    images = _as_spelled(_stems(folders.image_folder, is_image), xml)
    both = sorted(xml.keys() & images.keys())
    if not both:
        found = f"no image of {folders.image_folder} has an xml of its name in {folders.xml_folder}"
        raise UserError(f"{found}; {overview(folders.root)}", code="no_pairs")
    without = "images have no xml (without objects, an image needs an xml without <object>)"
    notes = (
        *count_note([xml[stem] for stem in sorted(xml.keys() - images.keys())], "xml files have no image"),
        *count_note([images[stem] for stem in sorted(images.keys() - xml.keys())], without),
        *count_note(unknown_files(folders.image_folder), "files beside the images have no suffix of an image"),
    )
    return Part(name, folders, both, tuple(f"{note}; left out" for note in notes))


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


def whole_set(root: Path, images: str | None, annotations: str | None) -> Part:
    """All images of a set as one part.

    Raises `UserError` as `find_folders` does, and for folders that are splits and have nothing in common.
    """
    try:
        return paired_part("all", find_folders(root, images, annotations))
    except UserError as error:
        splits = _split_folders(root, images, annotations)
        if error.code != "several_folders" or not splits:
            raise
        raise UserError(
            f"{root} has the splits {', '.join(splits)} already, so leave --val-share out: {voc_command(root)}",
            code="has_val",
        ) from None


def _split_folders(root: Path, images: str | None, annotations: str | None) -> dict[str, VocFolders]:
    """The folders of each split: train/ and others in `root`, or within the folders of images and xml files.

    Empty unless train and another split have images with xml files.
    """
    found: dict[str, VocFolders] = {}
    listings = Folders()
    if images is None and annotations is None:
        trees = {name: root / _as_on_disk(root, name, listings) for name in SPLIT_NAMES}
        found = {name: find_folders(tree, None, None) for name, tree in trees.items() if pairs_below(tree)}
    if "train" not in found or len(found) == 1:
        with contextlib.suppress(UserError):  # which the search for one part raises again
            folders = find_folders(root, images, annotations)
            below = {
                name: VocFolders(
                    root,
                    f"{folders.images}/{_as_on_disk(folders.image_folder, name, listings)}",
                    f"{folders.annotations}/{_as_on_disk(folders.xml_folder, name, listings)}",
                )
                for name in SPLIT_NAMES
            }
            found = {name: part for name, part in below.items() if _stems(part.xml_folder, is_xml)}
    return found if "train" in found and len(found) > 1 else {}


def _as_on_disk(folder: Path, name: str, listings: Folders) -> str:
    """The name in the letter case in which the folder has it."""
    found = listings.same_name(folder / name)
    return found.name if found else name
