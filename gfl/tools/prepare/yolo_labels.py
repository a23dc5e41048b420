"""The lines of YOLO label files, whose count of numbers is all that says what they are.

==================  ==================================================================================================
numbers             meaning
==================  ==================================================================================================
5                   ``class cx cy w h``: a box
5 + 2k, 5 + 3k      a box and k keypoints, with or without visibility: with ``kpt_shape`` in the data.yaml
7, 9, 11, ...       ``class x1 y1 x2 y2 x3 y3 ...``: a polygon; with 9, also the four corners of an oriented box
6, 7                a box with confidence or track id, or both: written by a detector
8, 10, 12, ...      a polygon with a confidence
==================  ==================================================================================================

Odd counts are ambiguous, so `decide` looks at all lines of a data set: polygons differ in their counts, keypoints lie
in their box and have visibilities of 0, 1 or 2, and a track id is a whole number. What remains doubtful is an error
that names the option. All but the class are fractions of the image; one file may have boxes and polygons.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gfl.common.errors import UserError
from gfl.common.text import describe
from gfl.tools.prepare.to_coco import parse_number

LABELS = ("auto", "boxes", "polygons", "obb")
SLACK = 0.01  # a fraction may lie outside [0, 1] by this much: tools round; boxes are clipped
BOX, CORNERS = 5, 9  # numbers of a box's and of an oriented box's line

Corners = tuple[float, float, float, float]


class LabelLine(NamedTuple):
    """One line, not yet known to be a box or a polygon."""

    number: int  # of the line, from 1
    count: int  # of its numbers
    index: int  # of the class
    first: Corners  # the four numbers after the class
    hull: Corners  # the bounding box of all points, if it is a polygon
    outside: str  # the first number of the line outside [0, 1], or ""
    num_inside: int  # how many numbers after the class are before it
    ends_whole: bool  # a whole number is where a track id would be
    visibilities: bool  # every third number after the box is 0, 1 or 2
    box_inside: bool  # as a box, it is inside the image
    points_in_box: bool  # and the points after the box lie in it, but are not three corners of an oriented box

    @property
    def corners(self) -> Corners:
        """Of the box ``cx cy w h``."""
        x, y, width, height = self.first
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def parse_line(number: int, words: Sequence[str], where: str, num_classes: int) -> LabelLine:
    """Raises `UserError` for words that are no numbers, and for a class that does not exist."""
    if len(words) < BOX:
        commas = ", separated by spaces instead of commas" if "," in words[0] else ""
        raise UserError(
            f"{where}: {len(words)} numbers; write class cx cy w h, or class and at least 3 points x y{commas}",
            code="label_count",
        )
    if len(words) in (9, 10) and words[8][:1].isalpha() and words[8].lower() not in ("nan", "inf", "infinity"):
        raise UserError(
            f"{where}: {words[8]!r:.80} where a number is expected: a line of DOTA (x1 y1 ... x4 y4 class difficult) "
            "is not YOLO's; export as YOLO-OBB",
            code="not_yolo",
        )
    index, *values = (parse_number(word, where, "each value") for word in words)
    if index not in range(num_classes):
        raise UserError(
            f"{where}: class {words[0]} is not one of the {num_classes} in names, which count from 0",
            code="class_index",
        )
    num_inside = next((i for i, value in enumerate(values) if not -SLACK <= value <= 1 + SLACK), len(values))
    xs, ys = values[::2], values[1::2]
    box_inside = _box_inside(values)
    return LabelLine(
        number,
        len(words),
        int(index),
        tuple(values[:4]),
        (min(xs), min(ys), max(xs), max(ys)),
        words[1 + num_inside] if num_inside < len(values) else "",
        num_inside,
        _ends_whole(values),
        len(values) > 4 and (len(values) - 4) % 3 == 0 and all(value in (0, 1, 2) for value in values[6::3]),
        box_inside,
        box_inside and len(values) > 4 and len(values) % 2 == 0 and _points_in_box(values) and not _is_oriented(values),
    )


def _ends_whole(values: Sequence[float]) -> bool:
    """Whether a whole number is where a track id would be: at the end, or, of 6, also before a confidence."""
    if len(values) == 6:
        return values[4].is_integer() or values[5].is_integer()
    if len(values) < 6:
        return values[-1].is_integer()
    return values[-1].is_integer() and not values[-2].is_integer()  # both are at a corner of the image


def _is_oriented(values: Sequence[float]) -> bool:
    """Whether these are four corners whose diagonals have the same centre."""
    if len(values) != 8:
        return False
    x1, y1, x2, y2, x3, y3, x4, y4 = values
    return max(abs(x1 + x3 - x2 - x4), abs(y1 + y3 - y2 - y4)) < SLACK


def _box_inside(values: Sequence[float]) -> bool:
    """Whether cx, cy, w, h are a box inside the image."""
    x, y, width, height = values[:4]
    low, high = min(x - width / 2, y - height / 2), max(x + width / 2, y + height / 2)
    return min(width, height) > 0 and low >= -SLACK and high <= 1 + SLACK


def _points_in_box(values: Sequence[float]) -> bool:
    """Whether the points after cx, cy, w, h lie in that box, or are (0, 0) as those that are not labelled."""
    x, y, width, height = values[:4]
    return all(
        px == py == 0 or (abs(px - x) <= width / 2 + SLACK and abs(py - y) <= height / 2 + SLACK)
        for px, py in zip(values[4::2], values[5::2], strict=True)
    )


@dataclass(frozen=True)
class LineFormat:
    """How the lines of a data set are read."""

    labels: str  # one of LABELS
    keypoints: int = 0  # numbers after the box that are keypoints, by kpt_shape
    pose: bool = False  # these lines read like keypoints without kpt_shape
    tracked: bool = False  # odd counts read like track ids
    corners: bool = False  # all lines that are no boxes have four corners

    def convert(self, line: LabelLine, where: str) -> Corners:
        """x1, y1, x2, y2 as fractions of the image; raises `UserError` for a line that is no box or polygon."""
        is_box = self.is_box(line)
        if not is_box and (problem := self._wrong_count(line) or self._not_polygon(line)):
            text, code = problem
            raise UserError(f"{where}: {line.count} numbers{text}", code=code)
        if line.num_inside < (4 if is_box else line.count - 1):
            raise UserError(
                f"{where}: {line.outside} is not in [0, 1]; coordinates are fractions of the image, not pixels",
                code="not_fraction",
            )
        return line.corners if is_box else line.hull

    def is_box(self, line: LabelLine) -> bool:
        """Whether the line begins with cx cy w h."""
        if self.labels == "boxes":
            return line.count >= BOX
        if self.labels == "obb":
            return False
        return line.count == BOX or (self.labels == "auto" and 0 < self.keypoints == line.count - BOX)

    def _wrong_count(self, line: LabelLine) -> tuple[str, str] | None:
        """What is wrong with the count of numbers of a line that is no box, and the code of the error."""
        count = line.count
        if self.labels == "obb":
            wrong = "; an oriented box has 9: class x1 y1 x2 y2 x3 y3 x4 y4; see --labels"
            return (wrong, "label_count") if count != CORNERS else None
        if self.keypoints and self.labels == "auto":
            return f", but kpt_shape asks for {BOX + self.keypoints}; correct it, or see --labels", "label_count"
        return (_six_numbers(line), "prediction") if count == BOX + 1 else None

    def _not_polygon(self, line: LabelLine) -> tuple[str, str] | None:
        """Why a line is not taken for a polygon, and the code of the error."""
        if self.pose:
            polygons = ", or --labels polygons if these are polygons" if line.count % 2 else ""
            return (
                ": it reads like a box with keypoints; add kpt_shape to the data.yaml or use --labels boxes, either "
                f"of which takes the box and leaves the keypoints out{polygons}",
                "keypoints",
            )
        if line.num_inside < (4 if line.count == 7 else line.count - 2):
            return None  # the error on numbers that are no fractions is clearer
        if line.count % 2 == 0:
            return (
                ": a polygon has an odd count, class x1 y1 x2 y2 ...; with one more, a detector's confidence, it is a "
                "detection and not ground truth: export without confidences",
                "prediction",
            )
        if self.labels != "auto" or not (self.tracked or (line.outside and line.ends_whole)):
            return None
        if line.count == 7:
            return (
                ": it reads like a box with a detector's confidence and track id, which is not ground truth; export "
                "without them, or use --labels boxes, which leaves both out, or --labels polygons for triangles",
                "prediction",
            )
        return (
            ": it ends with a whole number like a detector's track id, which is not ground truth; export without "
            "confidence and track id, or use --labels polygons if these are polygons",
            "prediction",
        )

    def notes(self, places: Iterable[tuple[str, LabelLine]]) -> tuple[str, ...]:
        """Sentences on lines that were not read in the only possible way."""
        boxes, triangles, corners = [], [], []
        for place, line in places:
            if self.is_box(line):
                boxes += [place] * (line.count > BOX)
            else:
                triangles += [place] * (line.count == 7 and self.labels == "auto")
                corners += [place] * (line.count == CORNERS and (self.corners or self.labels == "obb"))
        kinds = {
            "have more numbers than a box; the others (keypoints, confidence) were left out": boxes,
            "of 7 numbers were read as triangles": triangles,
            "are four corners, as of oriented boxes; each became its upright bounding box, which is larger than what "
            "is rotated": corners,
        }
        return tuple(f"{len(found)} lines {what}, the first: {found[0]}" for what, found in kinds.items() if found)


def _six_numbers(line: LabelLine) -> str:
    if not line.outside:
        return (
            ": a box with a confidence is a detection, not ground truth; export without confidences, or use --labels "
            "boxes, which takes every box whatever its confidence"
        )
    if line.ends_whole and not line.outside.startswith("-"):
        return (
            ": a box with a track id, or with an angle in degrees; export without it (rotated boxes as four corners), "
            "or use --labels boxes, which leaves it out"
        )
    return ": a box with an angle is rotated; export its four corners, as YOLO-OBB has them"


def decide(lines: Sequence[LabelLine], labels: str, keypoints: int) -> LineFormat:
    """How to read all lines of a data set.

    Args:
        labels: one of LABELS; "auto" decides by the lines.
        keypoints: numbers after each box by the data.yaml, or 0.
    """
    if labels != "auto" or keypoints:
        return LineFormat(labels, keypoints)
    others = [line for line in lines if line.count != BOX]
    counts = {line.count for line in others}
    uniform = len(counts) == 1 and min(counts) >= 7
    odd = [line for line in others if line.count >= 7 and line.count % 2]
    polygons = any(line.count > 7 and not line.ends_whole for line in odd)
    return LineFormat(
        labels,
        pose=uniform and (all(line.visibilities for line in others) or all(line.points_in_box for line in others)),
        tracked=bool(odd) and not polygons and _tracked(odd),
        corners=counts == {CORNERS},
    )


def _tracked(odd: Sequence[LabelLine]) -> bool:
    """Whether lines of odd counts, none of which is surely a polygon, read like boxes or polygons with track ids."""
    if all(line.count == 7 for line in odd):
        return all(line.ends_whole or line.box_inside for line in odd)
    return len(odd) > 1 and all(line.ends_whole for line in odd)  # a single polygon may end at the image's edge


def keypoint_numbers(tree: dict[str, Any], source: str) -> int:
    """How many numbers of keypoints follow each box by `kpt_shape` (keypoints, 2 or 3), or 0 without it."""
    shape = tree.get("kpt_shape")
    if shape is None:
        return 0
    whole = isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
    if not whole or len(shape) != 2 or shape[0] < 1 or shape[1] not in (2, 3):
        raise UserError(f"{source}: kpt_shape must be [number of keypoints, 2 or 3], not {describe(shape)}")
    return shape[0] * shape[1]
