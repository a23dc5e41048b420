"""Pictures of detections: boxes over an image, and the learned distribution of each side of a box.

Everything is drawn at twice the final size and averaged down, which anti-aliases every edge. Positions are continuous:
pixel k covers [k, k + 1). Pillow's built-in font knows ASCII and little more ("±", "·").
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from gfl.common.files import writing
from gfl.evaluation.inference import mean_and_std

# After Okabe and Ito (2008), safe for colour-blind eyes: ordered for contrast, without a blue too dark for the card.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 190, 140), (240, 228, 66), (213, 94, 0), (204, 121, 167))
WHITE, GREY, INK, CARD, OUTSIDE = (255, 255, 255), (150, 156, 168), (16, 18, 22), (27, 30, 36), (44, 48, 56)
SUPERSAMPLE = 2

# Layout of `draw_distributions`, in pixels of the double-size canvas. A cell is a title, a strip for the bars of left
# and right, the enlarged crop (PANEL wide and high) and beside it a strip for the bars of top and bottom.
TITLE, STRIP, PANEL, CELL_WIDTH, GAP, AXIS, LINE, FONT = 64, 214, 760, 1050, 48, 12, 5, 30
CELL_HEIGHT = TITLE + STRIP + PANEL
NOTABLE = 0.01  # bins of less probability are not drawn
LEGEND = (
    "bars: probability of each bin, at its place in the image; left and right side above, top and bottom beside\n"
    "white line: expectation, the side of the box  ·  ± and capped line: standard deviation  ·  dot: predicting point"
)


def draw_boxes(
    image: np.ndarray,
    boxes_xyxy: ArrayLike,
    labels: ArrayLike,
    texts: Sequence[str],
    target_boxes: ArrayLike | None = None,
    min_long_side: int = 640,
) -> np.ndarray:
    """Draw detections, and under them dashed white ground truth.

    image: (H, W, 3) uint8 RGB. boxes_xyxy: (M, 4) pixels, best first. labels: (M,) int, the colour. texts: M strings;
    a tag without room beside those before it is left out. target_boxes: (G, 4) pixels or None.
    Returns (H', W', 3) uint8; an image whose long side is below min_long_side is enlarged to it, others keep H, W.
    """
    canvas = _resize(image, max(1.0, min_long_side / max(image.shape[:2])))
    # Nearest doubling and averaging back is the identity: pixels without a drawing stay as they are.
    canvas = canvas.resize([SUPERSAMPLE * v for v in canvas.size], Image.Resampling.NEAREST)
    stretch = np.tile(np.divide(canvas.size, image.shape[1::-1]), 2)
    unit = SUPERSAMPLE * (max(canvas.size) / SUPERSAMPLE / 640) ** 0.5  # large images do not need letters as large
    _paint(canvas, _rows(boxes_xyxy) * stretch, labels, texts, _rows(target_boxes) * stretch, unit)
    return np.array(canvas.reduce(SUPERSAMPLE))


def draw_distributions(
    image: np.ndarray,
    boxes_xyxy: ArrayLike,
    points: ArrayLike,
    positions: ArrayLike,
    probabilities: ArrayLike,
    labels: ArrayLike,
    texts: Sequence[str],
) -> np.ndarray:
    """Show where each side of each detection may lie: an overview, then one enlarged panel per detection.

    image: (H, W, 3) uint8 RGB. boxes_xyxy: (M, 4) pixels. points: (M, 2) pixels, the points that predict the boxes.
    positions, probabilities: (M, 4, N) of the bins of l, t, r, b; pixels, x for left and right, y for top and bottom.
    labels: (M,) int, the colour. texts: M titles. Six detections make a picture of about 1660 x 1670.
    Returns (H', W', 3) uint8, its size set by M alone; without detections the image as `draw_boxes` returns it.
    """
    if len(texts) == 0:
        return draw_boxes(image, boxes_xyxy, labels, texts)
    boxes = _rows(boxes_xyxy)
    positions, probabilities = (np.asarray(values, dtype=float) for values in (positions, probabilities))
    # All bars share one scale; its floor keeps broad humps from looking sharp where nothing sharper is beside them.
    unit_height = (STRIP - AXIS - 2 * FONT) / max(0.5, probabilities.max())
    numbers = [str(i + 1) for i in range(len(texts))]
    scale = min(CELL_HEIGHT / image.shape[0], CELL_WIDTH / image.shape[1])
    cells = [_resize(image, scale)]
    _paint(cells[0], boxes * scale, labels, numbers, (), unit=SUPERSAMPLE)
    for i, colour in enumerate(_colours(labels)):
        title = f"{numbers[i]}  {texts[i]}"
        cells.append(_panel(image, boxes[i], points[i], positions[i], probabilities[i], unit_height, colour, title))
    return np.array(_arrange(cells).reduce(SUPERSAMPLE))


def save_image(image: np.ndarray, path: Path) -> None:
    """Write uint8 (H, W, 3) in the format of the file's ending; raises `UserError` where that is impossible."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def _colours(labels):
    return [PALETTE[int(label) % len(PALETTE)] for label in labels]


def _rows(boxes):
    return np.asarray([] if boxes is None else boxes, dtype=float).reshape(-1, 4)


def _resize(image, scale):
    size = [max(1, round(v * scale)) for v in (image.shape[1], image.shape[0])]
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _paint(canvas, boxes, labels, texts, targets, unit):
    """Draw in place; `unit` is the number of canvas pixels that lines and letters count as one."""
    draw, font, line = ImageDraw.Draw(canvas), ImageFont.load_default(14 * unit), max(3, round(2.5 * unit))
    for frame in filter(None, (_clip(box, canvas.size, line / 2) for box in targets)):
        _dashed(draw, frame, line)
    frames = [_clip(box, canvas.size, line / 2) for box in boxes]
    shown = [item for item in zip(frames, _colours(labels), texts, strict=True) if item[0]]
    for frame, colour, _ in reversed(shown):
        _outline(draw, frame, colour, line)
    taken = []
    for frame, colour, text in filter(lambda item: item[2], shown):
        _tag(draw, frame, text, font, colour, canvas.size, taken)


def _clip(box, size, margin):
    """The part of a box in the image, its outline fully visible; None if there is none or the box is not finite."""
    if not (np.isfinite(box).all() and (box[:2] <= np.minimum(box[2:], size)).all() and (box[2:] >= 0).all()):
        return None
    return np.clip(box, margin, np.tile(size, 2) - margin).tolist()


def _outline(draw, box, colour, line):
    """A line centred on the sides of the box, with a dark rim that sets it off from any image."""
    for fill, width in ((INK, line + 2), (colour, line)):
        grow = width / 2  # Pillow draws inwards
        draw.rectangle((box[0] - grow, box[1] - grow, box[2] + grow - 1, box[3] + grow - 1), None, fill, width)


def _dashed(draw, box, line):
    _outline(draw, box, INK, line - 2)
    x1, y1, x2, y2 = box
    for ends in ((x1, y1, x2, y1), (x1, y2, x2, y2), (x1, y1, x1, y2), (x2, y1, x2, y2)):
        dashes = 2 * max(1, round(np.hypot(ends[2] - ends[0], ends[3] - ends[1]) / (10 * line)))
        stops = np.linspace(ends[:2], ends[2:], dashes)
        for start, stop in zip(stops[::2], stops[1::2], strict=True):
            draw.line((*start, *stop), WHITE, line)


def _tag(draw, box, text, font, colour, size, taken):
    """Write on a filled tag above the box's top left or, if tags `taken` are in the way, at another of its corners."""
    pad = font.size / 4
    width, height = draw.textlength(text, font) + 2 * pad, font.size + 1.5 * pad
    corners = [(x, y) for x in (box[0], box[2] - width) for y in (box[1] - height, box[1], box[3], box[3] - height)]
    for left, top in np.clip(corners, 0, np.maximum(0, np.subtract(size, (width, height)))).tolist():
        if not any(left < a + w and a < left + width and abs(top - b) < height for a, b, w in taken):
            draw.rectangle((left, top, left + width, top + height), fill=colour)
            draw.text((left + pad, top + height / 2), text, INK, font, anchor="lm")
            taken.append((left, top, width))
            return


def _panel(image, box, point, positions, probabilities, unit_height, colour, title):
    """One detection enlarged, with its four distributions. positions, probabilities: (4, N)."""
    x0, y0, side = _region(image.shape[1::-1], box, positions, probabilities)
    crop = Image.new("RGB", (side, side), OUTSIDE)
    crop.paste(Image.fromarray(image), (-x0, -y0))
    cell = Image.new("RGB", (CELL_WIDTH, CELL_HEIGHT), CARD)
    cell.paste(crop.resize((PANEL, PANEL), Image.Resampling.BICUBIC), (0, TITLE + STRIP))
    draw, scale, origin = ImageDraw.Draw(cell), PANEL / side, np.array([x0, y0, x0, y0])
    draw.text((0, TITLE / 2), title, colour, ImageFont.load_default(1.25 * FONT), anchor="lm")
    corners = (box - origin) * scale
    _outline(draw, np.add(corners, (0, TITLE + STRIP, 0, TITLE + STRIP)), colour, LINE)
    along = (positions - origin[:, None]) * scale
    middle = (corners[:2] + corners[2:]) / 2
    for index in range(4):
        level = -middle[1] if index % 2 == 0 else middle[0] - PANEL
        _distribution(draw, index, along[index], probabilities[index], unit_height, level, scale, colour)
    x, y = (np.asarray(point, dtype=float) - (x0, y0)) * scale + (0, TITLE + STRIP)
    draw.ellipse((x - 9, y - 9, x + 9, y + 9), WHITE, INK, 3)
    return cell


def _region(size, box, positions, probabilities):
    """A square around the box, the point and the bins that are drawn, inside the image where possible: x0, y0, side."""
    shown = np.where(probabilities >= NOTABLE, positions, positions[:, :1])
    low, high = np.minimum(box[:2], shown[:2].min(-1)), np.maximum(box[2:], shown[2:].max(-1))
    side = max(8, int(np.ceil(1.2 * (high - low).max())))
    spare = np.subtract(size, side)
    start = np.clip((low + high - side) / 2, np.minimum(0, spare / 2), np.maximum(spare, spare / 2))
    start = np.clip(start, high + side / 12 - side, low - side / 12)
    return *np.floor(start).astype(int).tolist(), side


def _distribution(draw, index, along, probabilities, unit_height, level, scale, colour):
    """Draw side `index` of l, t, r, b. along: (N,) pixels on the crop's edge, from which heights and `level` count."""
    mean, std = mean_and_std(along, probabilities)

    def place(along, height):
        return (along, TITLE + STRIP - height) if index % 2 == 0 else (PANEL + height, TITLE + STRIP + along)

    def bar(start, stop, low, high, fill):
        (xa, ya), (xb, yb) = place(start, low), place(stop, high)
        draw.rectangle((min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)), fill)

    half = 0.36 * abs(along[1] - along[0])
    for i, (position, probability) in enumerate(zip(along, probabilities, strict=True)):
        if 0 <= position <= PANEL:
            bar(position - 1, position + 1, 2, AXIS - 2, GREY)
        if probability >= NOTABLE:
            # Opposite sides share the place of bin 0, the point: each takes half of it.
            before, after = (half if i or index < 2 else 0), (half if i or index >= 2 else 0)
            bar(position - before, position + after, AXIS, AXIS + probability * unit_height, colour)
    bar(mean - 1.5, mean + 1.5, 0, STRIP - 1.75 * FONT, WHITE)

    strokes = ((mean - std, mean + std, 0), (mean - std, mean - std, 10), (mean + std, mean + std, 10))
    for fill, pen in ((INK, LINE / 2 + 2), (colour, LINE / 2)) if std > LINE else ():  # else the side itself hides it
        for start, stop, cap in strokes:
            bar(start - pen, stop + pen, level - cap - pen, level + cap + pen, fill)

    # The text keeps to its side of the point, so that opposite ones never meet.
    text, font = f"±{std / scale:.{1 if std / scale < 10 else 0}f} px", ImageFont.load_default(FONT)
    reach, anchor = (draw.textlength(text, font) / 2 + 6, "mb") if index % 2 == 0 else (FONT / 2 + 4, "lm")
    centre = max(mean, along[0] + reach) if index >= 2 else min(mean, along[0] - reach)
    draw.text(place(np.clip(centre, reach, PANEL - reach), STRIP - 1.5 * FONT), text, WHITE, font, anchor)


def _arrange(cells):
    """Cells on a grid about as wide as high, over the legend."""
    columns = len(cells) if len(cells) <= 3 else int(np.ceil(np.sqrt(len(cells))))
    step_x, step_y, font = CELL_WIDTH + GAP, CELL_HEIGHT + GAP, ImageFont.load_default(FONT)
    bottom = GAP + step_y * -(-len(cells) // columns)
    page = Image.new("RGB", (GAP + step_x * columns, bottom + 3 * FONT), CARD)
    for i, cell in enumerate(cells):
        page.paste(cell, (GAP + step_x * (i % columns), GAP + step_y * (i // columns)))
    ImageDraw.Draw(page).multiline_text((GAP, bottom - FONT / 2), LEGEND, GREY, font, spacing=FONT / 2)
    return page
