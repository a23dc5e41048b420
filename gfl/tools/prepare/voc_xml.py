"""The xml files of Pascal VOC's layout, as many tools write them.

Files are read by the standard library's parser: it never opens external entities, and expat from 2.4.1 on, which Python
3.10 and later bring, limits the expansion of entities. It knows few encodings, so files are decoded before.
"""

import codecs
import re
from pathlib import Path
from xml.etree import ElementTree

from gfl.common.errors import UserError
from gfl.data.image_files import image_sizes
from gfl.tools.prepare.to_coco import Box, BoxAdjustments, clip_box, parse_number

SIZE, CORNERS = ("width", "height"), ("xmin", "ymin", "xmax", "ymax")
DECLARATION = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class XmlNotes:
    """The places of objects that are more than an upright box."""

    def __init__(self) -> None:
        self.rotated: list[str] = []

    def notes(self) -> tuple[str, ...]:
        if not self.rotated:
            return ()
        what = "boxes have a rotation, which was not applied; export polygons or upright boxes to be exact"
        return (f"{len(self.rotated)} {what}, the first: {self.rotated[0]}",)


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an annotation; raises `UserError` for a file that cannot be read or is something else."""
    try:
        node = ElementTree.fromstring(_decode(path.read_bytes()).lstrip())
    except (OSError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}", code="unreadable") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: its bytes are not the {error.encoding} that it declares, or should be without a declaration "
            f"({error.reason} at byte {error.start}); save it as UTF-8",
            code="encoding",
        ) from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: encodings
        raise UserError(f"{path}: not xml: {error}", code="not_xml") from None
    if node.tag != "annotation":
        raise UserError(
            f"{path}: not a VOC annotation: it begins with <{node.tag}> instead of <annotation>", code="not_voc"
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


def annotated_size(node: ElementTree.Element, xml: Path, image: Path) -> tuple[int, int]:
    """The image's (width, height), upright or as stored, whichever the annotations were made on."""
    width, height = (parse_number(node.findtext(f"size/{tag}"), str(xml), f"<size> <{tag}>") for tag in SIZE)
    sizes = image_sizes(image)
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
    if node.find("bndbox") is None and node.find("robndbox") is not None:
        raise UserError(
            f"{where}: a rotated box (<robndbox>) instead of <bndbox>; export upright boxes, or convert it to the box "
            "around its four corners",
            code="rotated",
        )
    x1, y1, x2, y2 = (parse_number(node.findtext(f"bndbox/{tag}"), where, f"<{tag}>") for tag in CORNERS)
    first = 0 if zero_based else 1
    difficult = parse_number(node.findtext("difficult") or "0", where, "<difficult>") != 0
    boxes = clip_box(name, (x1 - first, y1 - first, x2, y2), size, where, adjustments, crowd=difficult)
    if boxes and _is_rotated(node):
        notes.rotated.append(where)
    return boxes


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
