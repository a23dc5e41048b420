"""The distances of perceptual hashes between copies of photographs and between different ones, as docs/own_data.md has.

example: python tests/robustness/near_duplicate_distances.py data/coco128/train2017 data/bccd
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from gfl.data.image_files import find_images, read_image
from gfl.tools.near_duplicates import BITS, MAX_DISTANCE, image_hash


def compressed(pixels, quality):
    data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def scaled(pixels, factor):
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=method)


def brightened(pixels, factor=1.0, levels=0.0):
    return np.clip(pixels * factor + levels, 0, 255).round().astype(np.uint8)


def moved(pixels, share):
    """Two views of 90 % of the width, the second of which begins `share` of the width further right."""
    width = pixels.shape[1]
    view, shift = int(0.9 * width), int(share * width)
    return pixels[:, :view], pixels[:, shift : shift + view]


COPIES = {
    "JPEG quality 30 to 95": [lambda p, q=q: compressed(p, q) for q in (30, 50, 75, 95)],
    "scaled by 0.5 to 2": [lambda p, f=f: scaled(p, f) for f in (0.5, 0.75, 1.5, 2.0)],
    "20 levels darker or lighter": [lambda p, v=v: brightened(p, levels=v) for v in (-20, -10, 10, 20)],
    "contrast times 0.9 or 1.1": [lambda p, f=f: brightened(p, f) for f in (0.9, 1.1)],
    "half the size, lighter, quality 30": [lambda p: compressed(brightened(scaled(p, 0.5), 1.05, 5), 30)],
}


def distance(first, second):
    return (int.from_bytes(first, "big") ^ int.from_bytes(second, "big")).bit_count()


def measure(folder):
    paths = find_images(folder)
    hashes = [image_hash(read_image(path)) for path in paths]
    pairs = sorted((distance(a, b), i, j) for i, a in enumerate(hashes) for j, b in enumerate(hashes[:i]))
    near = [pair for pair in pairs if pair[0] <= MAX_DISTANCE]
    print(f"{folder}: {len(paths)} images, {len(pairs)} pairs, the closest that are not near: ", end="")
    print(f"{pairs[len(near)][0] / BITS:.1%}")
    for bits, i, j in near:
        print(f"  near: {bits / BITS:.1%}  {paths[i]} = {paths[j]}")
    for name, changes in COPIES.items():
        found = [
            distance(value, image_hash(c(read_image(path))))
            for path, value in zip(paths, hashes, strict=True)
            for c in changes
        ]
        print(f"  {name}: farthest {max(found) / BITS:.1%}, found {np.mean(np.array(found) <= MAX_DISTANCE):.1%}")
    for share in (0.01, 0.02, 0.03):
        found = [distance(*map(image_hash, moved(read_image(path), share))) for path in paths]
        print(f"  moved by {share:.0%} of the width: found {np.mean(np.array(found) <= MAX_DISTANCE):.1%}")


for argument in sys.argv[1:]:
    measure(Path(argument))
