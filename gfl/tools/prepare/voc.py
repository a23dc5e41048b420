"""Pascal VOC's layout: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt.

The devkit's corners count pixels from 1, and the far one is the last pixel of the box: a box over a whole image of
W x H is (1, 1, W, H). As edges, which COCO-format json has, that is (0, 0, W, H): 1 is taken off the near corner only.
Many other tools write edges into the same tags; `zero_based` takes theirs as they are.

VOC's evaluation neither requires objects marked `difficult` to be found nor counts their detections as wrong. COCO's
does the same with `iscrowd`, so they become crowd boxes, which training leaves out. (The overlap with a crowd box is
relative to the detection alone, so a few more detections are ignored than by VOC.)

Files are read by the standard library's parser: it never opens external entities, and expat from 2.4.1 on, which Python
3.10 and later bring, limits the expansion of entities.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from gfl.common.errors import UserError
from gfl.data.image_files import IMAGE_SUFFIXES, check_file_name, image_sizes
from gfl.tools.prepare.to_coco import (
    Box,
    BoxAdjustments,
    ImageRecord,
    Progress,
    Split,
    clip_box,
    parse_number,
    read_lines,
)

SIZE, CORNERS = ("width", "height"), ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path, split: str, *, zero_based: bool = False, progress: Progress = iter) -> Split:
    """The images that ImageSets/Main/<split>.txt lists; a box's category is its class name.

    Raises `UserError` that names the file, and the line or object, if anything cannot be used.
    """
    names = _read_image_names(root / "ImageSets" / "Main" / f"{split}.txt")
    adjustments = BoxAdjustments()
    images = [_read_image(root, name, zero_based, adjustments) for name in progress(sorted(names))]
    notes = adjustments.notes()
    if adjustments.clipped and not zero_based:
        notes += ("if they have corners at 0, these files may count from 0: then convert with --zero-based",)
    return Split(split, root / "JPEGImages", sorted(images), notes)


def class_names(splits: Sequence[Split], wanted: Sequence[str] | None = None) -> dict[str, str]:
    """The categories of some splits: those in `wanted`, or all that occur, in alphabetical order.

    Raises `UserError` if a class occurs that is not in `wanted`, or if none occurs.
    """
    found = {box.category: split.name for split in splits for box in split.boxes}
    if unknown := sorted(found.keys() - set(wanted or found)):
        raise UserError(f"split {found[unknown[0]]}: class {unknown[0]!r} is not among --classes {' '.join(wanted)}")
    names = list(dict.fromkeys(wanted or sorted(found)))
    if not names:
        raise UserError("none of the images has an object, so there are no classes; name them with --classes")
    return {name: name for name in names}


def _read_image_names(path: Path) -> list[str]:
    """Image names of a split file, one a line."""
    lines: dict[str, int] = {}
    for line, name in read_lines(path):
        check_file_name(name, f"{path} line {line}")
        if name in lines:
            raise UserError(f"{path} line {line}: {name!r:.80} is also in line {lines[name]}; remove one")
        lines[name] = line
    if not lines:
        raise UserError(f"{path} lists no images")
    return list(lines)


def _read_image(root: Path, name: str, zero_based: bool, adjustments: BoxAdjustments) -> ImageRecord:
    xml = root / "Annotations" / f"{name}.xml"
    node = _parse(xml)
    folder = root / "JPEGImages"
    found = [path for path in _candidates(folder, name) if path.is_file()]
    if len(found) != 1:
        # <filename> is not used: it is often the name from before the files were renamed
        what = f"both {found[0].name} and {found[1].name}" if found else f"no {name}.jpg, or with another suffix,"
        raise UserError(f"{xml}: there is {what} in {folder}; it needs exactly one image")
    size = _annotated_size(node, xml, found[0])
    boxes = [
        box
        for position, entry in enumerate(node.iterfind("object"), 1)
        for box in _read_object(entry, f"{xml}: object {position}", size, zero_based, adjustments)
    ]
    return ImageRecord(found[0].relative_to(folder).as_posix(), *size, boxes)


def _candidates(folder: Path, name: str) -> list[Path]:
    return [folder / (name + form) for suffix in IMAGE_SUFFIXES for form in (suffix, suffix.upper())]


def _parse(path: Path) -> ElementTree.Element:
    try:
        node = ElementTree.fromstring(path.read_bytes())
    except (OSError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: unknown encodings
        raise UserError(f"{path}: not xml: {error}") from None
    if node.tag != "annotation":
        raise UserError(f"{path}: not a VOC annotation: it begins with <{node.tag}> instead of <annotation>")
    return node


def _annotated_size(node: ElementTree.Element, xml: Path, image: Path) -> tuple[int, int]:
    """The image's (width, height), upright or as stored, whichever the annotations were made on."""
    width, height = (parse_number(node.findtext(f"size/{tag}"), str(xml), f"<size> <{tag}>") for tag in SIZE)
    sizes = image_sizes(image)
    for size in sizes:
        if (width, height) == size:
            return size
    raise UserError(
        f"{xml}: <size> says {width:g} x {height:g}, but {image} is {sizes[0][0]} x {sizes[0][1]}; its boxes may not "
        "fit; correct the <size> or the image"
    )


def _read_object(
    node: ElementTree.Element, where: str, size: tuple[int, int], zero_based: bool, adjustments: BoxAdjustments
) -> list[Box]:
    name = (node.findtext("name") or "").strip()
    if not name or not name.isprintable():
        raise UserError(f"{where}: <name> must be a class name, not {name!r:.80}")
    where = f"{where} ({name})"
    x1, y1, x2, y2 = (parse_number(node.findtext(f"bndbox/{tag}"), where, f"<{tag}>") for tag in CORNERS)
    first = 0 if zero_based else 1
    difficult = parse_number(node.findtext("difficult", "0"), where, "<difficult>") != 0
    return clip_box(name, (x1 - first, y1 - first, x2, y2), size, where, adjustments, crowd=difficult)
