"""The xml files of Pascal VOC as splits; `voc_layout` says where they are.

The devkit's corners count pixels from 1, and the far one is the last pixel of the box: a box over a whole image of
W x H is (1, 1, W, H). As edges, which COCO-format json has, that is (0, 0, W, H): 1 is taken off the near corner only.
Many other tools write edges into the same tags; `zero_based` takes theirs as they are.

VOC's evaluation neither requires objects marked `difficult` to be found nor counts their detections as wrong. COCO's
does the same with `iscrowd`, so they become crowd boxes, which training leaves out. (The overlap with a crowd box is
relative to the detection alone, so a few more detections are ignored than by VOC.)
"""

from collections.abc import Sequence

from gfl.common.errors import UserError
from gfl.tools.prepare.faults import Faults
from gfl.tools.prepare.find_files import Folders
from gfl.tools.prepare.to_coco import BoxAdjustments, ImageRecord, Progress, Split
from gfl.tools.prepare.voc_folders import VocFolders
from gfl.tools.prepare.voc_layout import Part
from gfl.tools.prepare.voc_xml import XmlNotes, annotated_size, parse_xml, read_object


def read_voc(parts: Sequence[Part], *, zero_based: bool = False, progress: Progress = iter) -> list[Split]:
    """The images of some splits; a box's category is its class name.

    Raises `UserError` that names the files, and the objects, that cannot be used: all of one kind at once.
    """
    faults, folders, result = Faults(), Folders(), []
    for part in parts:
        adjustments, xml_notes, images = BoxAdjustments(), XmlNotes(), []
        for name in progress(sorted(part.names)):
            with faults.collect(f"{name}.xml", "xml"):
                images.append(_read_image(part.folders, name, zero_based, folders, faults, adjustments, xml_notes))
        notes = adjustments.notes()
        if adjustments.clipped and not zero_based:
            notes += ("if they have corners at 0, these files may count from 0: then convert with --zero-based",)
        notes += xml_notes.notes() + part.notes
        result.append(Split(part.name, part.folders.image_folder, sorted(images), notes))
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
