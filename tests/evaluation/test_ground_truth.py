"""Ground truth that pycocotools would take otherwise: regions to ignore, and areas that are no size."""

import pytest

from gfl.data.coco import load_coco
from gfl.evaluation.coco_eval import coco_metrics

NAMES = {7: "disc", 3: "ring", 9: "ignored regions"}
BOXES = [(0, 7, [10, 10, 60, 50]), (0, 3, [100, 20, 20, 25]), (1, 7, [5, 40, 120, 110])]
REGIONS = [(0, 7, [100, 90, 40, 40]), (1, 9, [100, 20, 100, 60])]  # the first is marked, the second a class


def detection(image, category, bbox, score):
    return {"image_id": 900 - 7 * image, "category_id": category, "bbox": bbox, "score": score}


def test_regions_to_ignore_are_crowds_of_their_class_or_of_every_class(coco_set):
    made = coco_set([(200, 150), (220, 200)], [*BOXES, *REGIONS], categories=NAMES)
    made.tree["annotations"][3]["ignore"] = 1
    data = load_coco(made.save().annotations, made.images, ignore_classes=["ignored regions"])
    found = [detection(*box, 0.3) for box in BOXES]
    marked = detection(0, 7, [102, 92, 30, 30], 0.9)
    regions = [detection(1, category, [110, 25, 50, 50], 0.9) for category in (7, 3)]
    assert coco_metrics(data, [*found, marked, *regions])["AP"] == pytest.approx(1)
    assert coco_metrics(data, [*found, marked | {"category_id": 3}])["AP"] < 1


@pytest.mark.parametrize("area", [-1, 0, float("inf"), float("nan")])
def test_an_area_that_is_no_size_is_that_of_the_box(coco_set, area):
    made = coco_set([(200, 150), (220, 200)], BOXES, categories=NAMES)
    found = [detection(image, category, [x + 2, y, w, h], 0.5) for image, category, (x, y, w, h) in BOXES]
    expected = coco_metrics(made.load(), found)
    assert None not in (expected["APS"], expected["APM"], expected["APL"])
    for entry in made.tree["annotations"]:
        entry["area"] = area
    assert coco_metrics(made.save().load(), found) == expected
