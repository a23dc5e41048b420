"""The xml files of Pascal VOC's layout, as many tools write them.

Files are read by the standard library's parser: it never opens external entities, and expat from 2.4.1 on, which Python
3.10 and later bring, limits the expansion of entities. It knows few encodings, so files are decoded before.
"""

import codecs
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gfl.common.errors import UserError
from gfl.common.file_kinds import recognise_content
from gfl.common.text import parse_flag
from gfl.data.annotation_marks import ignored_because
from gfl.data.image_files import image_sizes
from gfl.tools.prepare.find_files import count_note
from gfl.tools.prepare.to_coco import Box, BoxAdjustments, clip_box, parse_number

SIZE, CORNERS = ("width", "height"), ("xmin", "ymin", "xmax", "ymax")
DECLARATION = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class XmlNotes:
    """The places of what was read otherwise than it is written."""

    def __init__(self) -> None:
        self.rotated: list[str] = []
        self.without_size: list[str] = []

    def notes(self) -> tuple[str, ...]:
        return (
            *count_note(
                self.rotated,
                "boxes have a rotation, which was not applied; export polygons or upright boxes to be exact",
            ),
            *count_note(self.without_size, "xml files have no <size>; the image's, turned upright, was taken"),
        )


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an annotation; raises `UserError` for a file that cannot be read or is something else."""
    data = b""
    try:
        data = path.read_bytes()
        node = ElementTree.fromstring(_decode(data).lstrip())
    except (OSError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}", code="unreadable") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: its bytes are not the {error.encoding} that it declares, or should be without a declaration "
            f"({error.reason} at byte {error.start}); save it as UTF-8",
            code="encoding",
        ) from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: encodings
        kind = recognise_content(data[:512]) if data.strip() else "empty"
        reason = f"it is {kind}" if kind and "XML" not in kind else error
        raise UserError(f"{path}: not xml: {reason}; repair it or move it away", code="not_xml") from None
    if node.tag != "annotation":
        tool = "; this is CVAT's xml of all images: export as Pascal VOC or COCO there" * (node.tag == "annotations")
        raise UserError(
            f"{path}: not a VOC annotation: it begins with <{node.tag}> instead of <annotation>{tool}", code="not_voc"
        )
    return node


def _decode(data: bytes) -> str:
    """By byte order mark, else as declared, else UTF-8."""
    if data.startswith(UTF16):
        return data.decode("utf-16")
    if data.startswith(codecs.BOM_UTF8):
        return data.decode("utf-8-sig")
    if data.startswith((b"<\0", b"\0<")):
        return data.decode("utf-16-le" if data[0] else "utf-16-be")
    declared = DECLARATION.match(data.lstrip())
    encoding = declared[1].decode("ascii") if declared else "utf-8"
    # Since the declaration was found byte by byte, it is wrong about UTF-16, as some tools are.
    return data.decode("utf-8" if encoding.lower().startswith("utf-16") else encoding)


def annotated_size(node: ElementTree.Element, xml: Path, image: Path, notes: XmlNotes) -> tuple[int, int]:
    """The image's (width, height), upright or as stored, whichever the annotations were made on.

    Upright where the file does not say: without a size, or with one of 0, as some tools write.
    """
    width, height = (parse_number(node.findtext(f"size/{tag}") or "0", str(xml), f"<size> <{tag}>") for tag in SIZE)
    sizes = image_sizes(image)
    if width == height == 0:
        notes.without_size.append(str(xml))
        return sizes[0]
    for size in sizes:
        if (width, height) == size:
            return size
    raise UserError(
        f"{xml}: <size> says {width:g} x {height:g}, but {image} is {sizes[0][0]} x {sizes[0][1]}; its boxes may not "
        "fit; correct the <size> or the image",
        code="image_size",
    )


def read_object(
    node: ElementTree.Element,
    where: str,
    size: tuple[int, int],
    zero_based: bool,
    adjustments: BoxAdjustments,
    notes: XmlNotes,
) -> list[Box]:
    """The box of an <object>, or no box if it is outside the image."""
    name = (node.findtext("name") or "").strip()
    if not name or not name.isprintable():
        raise UserError(f"{where}: <name> must be a class name, not {name!r:.80}", code="class_name")
    where = f"{where} ({name})"
    if (count := len(node.findall("bndbox"))) == 0:
        raise _no_box(node, where)
    if count > 1:
        raise UserError(f"{where}: {count} <bndbox>; make an <object> of each", code="several_boxes")
    x1, y1, x2, y2 = (parse_number(node.findtext(f"bndbox/{tag}"), where, f"<{tag}>") for tag in CORNERS)
    first = 0 if zero_based else 1
    if parse_flag(node.findtext("difficult")) is None:
        raise UserError(f"{where}: <difficult> must be 0 or 1, not {node.findtext('difficult')!r:.80}", code="flag")
    crowd = bool(ignored_because(_marks(node)))
    boxes = clip_box(name, (x1 - first, y1 - first, x2, y2), size, where, adjustments, crowd=crowd)
    if boxes and _is_rotated(node):
        notes.rotated.append(where)
    return boxes


def _no_box(node: ElementTree.Element, where: str) -> UserError:
    """The error for an object without <bndbox>."""
    if node.find("robndbox") is not None:
        return UserError(
            f"{where}: a rotated box (<robndbox>) instead of <bndbox>; export upright boxes, or convert it to the box "
            "around its four corners",
            code="rotated",
        )
    tags = ", ".join(f"<{child.tag}>" for child in node)
    return UserError(f"{where}: there is no <bndbox>, only {tags:.80}; export boxes", code="no_box")


def _marks(node: ElementTree.Element) -> dict[str, Any]:
    """What an object says besides its box, as an annotation of COCO has it."""
    attributes = {entry.findtext("name"): entry.findtext("value") for entry in node.iterfind("attributes/attribute")}
    crowd = parse_flag(node.findtext("iscrowd"))
    return {child.tag: child.text for child in node} | {"attributes": attributes, "iscrowd": crowd, "category_id": 0}


def _is_rotated(node: ElementTree.Element) -> bool:
    """By CVAT's attribute, or a tag of other tools."""
    found = [node.findtext(f"bndbox/{tag}") or node.findtext(tag) for tag in ("angle", "rotation")]
    attributes = [entry for entry in node.iterfind("attributes/attribute") if entry.findtext("name") == "rotation"]
    found += [entry.findtext("value") for entry in attributes]
    for text in found:
        try:
            if float(text or 0) % 360 != 0:
                return True
        except ValueError:
            continue
    return False
