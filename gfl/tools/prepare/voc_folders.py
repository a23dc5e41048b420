"""The folders of a set of xml files and images, searched for where they are not given.

Images and xml files may lie in one folder, or in two trees of the same sub-folders. What can be read in two ways is an
error that ends with a command.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gfl.common.errors import UserError
from gfl.common.text import shell_command
from gfl.data.image_files import is_image
from gfl.tools.prepare.find_files import folder_overview, spelling_key, walk

IMAGES, ANNOTATIONS = "JPEGImages", "Annotations"  # as the devkit calls them
Pair = tuple[PurePosixPath, PurePosixPath]  # folders of images and of xml files, relative to the root


@dataclass(frozen=True)
class VocFolders:
    """Where a data set has its files."""

    root: Path
    images: str = IMAGES  # relative to the root
    annotations: str = ANNOTATIONS

    @property
    def image_folder(self) -> Path:
        return self.root / self.images

    @property
    def xml_folder(self) -> Path:
        return self.root / self.annotations


def voc_command(root: Path, *words: str | Path) -> str:
    """The command that converts a set in this way."""
    return shell_command("python", "scripts/to_coco.py", "voc", root, *words)


def is_xml(path: Path) -> bool:
    """Whether the name has the suffix of an xml file."""
    return path.suffix.lower() == ".xml"


def find_folders(root: Path, images: str | None, annotations: str | None) -> VocFolders:
    """The folders whose images and xml files have the same names, below which sub-folders may be the same.

    Raises `UserError` where there are none, or where several can be meant.
    """
    if images is not None and annotations is not None:
        return VocFolders(root, images, annotations)
    if not root.is_dir():
        raise UserError(f"{root} is no folder", code="no_folder")
    default = VocFolders(root, images or IMAGES, annotations or ANNOTATIONS)
    if default.image_folder.is_dir() and default.xml_folder.is_dir():
        return default
    if devkits := sorted(path.parent.parent for level in ("*", "*/*") for path in root.glob(f"{level}/ImageSets/Main")):
        raise UserError(f"the data set is in {devkits[0]}; convert it: {voc_command(devkits[0])}", code="devkit")
    if missing := [name for name in (images, annotations) if name and not (root / name).is_dir()]:
        raise UserError(f"there is no folder {root / missing[0]}; {overview(root)}", code="no_folder")
    pairs = pairs_below(root, images, annotations)
    if not pairs:
        raise UserError(f"no xml has the name of an image; {overview(root)}", code="no_pairs")
    best = min(pairs, key=lambda found: (-len(pairs[found]), sum(len(folder.parts) for folder in found), found))
    # Files of one name in several sub-folders of these folders make other pairs as well, which are none.
    within = {found for found in pairs if all(map(PurePosixPath.is_relative_to, found, best))}
    rivals = [
        found
        for found in pairs.keys() - {best}
        if 2 * len(pairs[found] - (pairs[best] if found in within else set())) > len(pairs[best])
        or not all(file.is_relative_to(best[1]) for file in pairs[found])
    ]
    if rivals:
        raise _several(root, {found: len(pairs[found]) for found in (best, *sorted(rivals))})
    return VocFolders(root, *map(str, best))


def pairs_below(
    root: Path, images: str | None = None, annotations: str | None = None
) -> dict[Pair, set[PurePosixPath]]:
    """The folders, and the xml files whose name an image has there.

    Sub-folders that both have in common are not part of the folders, unless they are given so: images/a/1.jpg and
    xml/a/1.xml are of images and xml.
    """
    folders_of, xml = defaultdict(set), []
    for file in walk(root):
        path = PurePosixPath(file.relative_to(root).as_posix())
        if is_image(file):
            folders_of[spelling_key(path.stem)].add(path.parent)
        elif is_xml(file):
            xml.append(path)
    given = tuple(None if name is None else PurePosixPath(Path(name).as_posix()) for name in (images, annotations))
    pairs = defaultdict(set)
    for path in xml:
        for folder in folders_of.get(spelling_key(path.stem), ()):
            fitting = [pair for pair in _without_common_end(folder, path.parent) if _fits(pair, given)]
            if fitting:
                pairs[fitting[0]].add(path)
    return pairs


def _fits(pair: Pair, given: Sequence[PurePosixPath | None]) -> bool:
    return all(name in (None, folder) for name, folder in zip(given, pair, strict=True))


def _without_common_end(first: PurePosixPath, second: PurePosixPath) -> list[Pair]:
    """Both folders, and their parents as long as the last parts are the same; the shortest first."""
    pairs = [(first, second)]
    while first.name and first.name == second.name:
        first, second = first.parent, second.parent
        pairs.insert(0, (first, second))
    return pairs


def _several(root: Path, counts: Mapping[Pair, int]) -> UserError:
    found = [f"{images} with {annotations} ({count} pairs)" for (images, annotations), count in counts.items()]
    images, annotations = (Path(folder) for folder in next(iter(counts)))
    command = voc_command(root, "--images", images, "--annotations", annotations)
    return UserError(
        f"{root}: folders that fit are {', '.join(found[:4])}; choose with --images and --annotations, such as: "
        f"{command}",
        code="several_folders",
    )


def overview(root: Path) -> str:
    """What there is, for an error about folders."""
    found = folder_overview(root) if root.is_dir() else {}
    if not found:
        return f"{root} has no xml files or images; give the folder that has them"
    text = ", ".join(f"{name} ({xml} xml, {images} images)" for name, (xml, images) in list(found.items())[:6])
    return f"found are {text}; give the folders with --images and --annotations"
