"""Boxes of a json that read better in another format than [x, y, width, height] in pixels."""

import numpy as np

from gfl.common.findings import Finding

SLACK = 1.0  # pixels by which a box may reach outside its image; exports round
MIN_BOXES = 3  # of which corners are recognised


def box_format_findings(boxes: np.ndarray, sizes: np.ndarray) -> list[Finding]:
    """What all boxes of a split seem to be instead.

    Args:
        boxes: (n, 4) numbers of each `bbox`, which may be any.
        sizes: (n, 2) height and width of their images.
    """
    if len(boxes) and ((boxes >= 0) & (boxes <= 1)).all():
        advice = "they read like fractions of the image; multiply them by its width and height"
        return [Finding("warning", len(boxes), "boxes with all numbers from 0 to 1", advice)]
    near, far, ends = boxes[:, :2], boxes[:, 2:], sizes[:, ::-1] + SLACK
    outside = (near + far > ends).any(axis=1)
    corners = (far > near) & (far <= ends)
    if len(boxes) < MIN_BOXES or 2 * outside.sum() < len(boxes) or not corners.all():
        return []
    advice = "all boxes read as corners [x1, y1, x2, y2]; a bbox is [x, y, width, height]"
    return [Finding("warning", int(outside.sum()), "boxes reach outside their image", advice)]
