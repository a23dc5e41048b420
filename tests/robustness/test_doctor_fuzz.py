"""The doctor judges random changes of a json as training does."""

import numpy as np
import pytest

from gfl.common.errors import UserError
from gfl.data.coco import read_coco_json
from gfl.tools.doctor.annotations import check_annotations

pytestmark = pytest.mark.robustness

TEXTS = ["", "cat", "000.png", "\ud800", "../x"]
VALUES = [None, -1, 0, 1, 2, 900, 2**70, 1.5, float("nan"), *TEXTS, [], [1], {}, True]


@pytest.mark.parametrize("seed", range(120))
def test_training_refuses_a_json_exactly_if_the_doctor_finds_an_error(seed, coco_set):
    boxes = [(0, 1, [10, 10, 40, 40]), (1, 2, [60, 30, 45, 50])]
    made = coco_set([(128, 100), (120, 128)], boxes, categories={1: "cat", 2: "dog"})
    rng = np.random.default_rng(seed)
    for _ in range(rng.integers(1, 4)):
        entries = made.tree[("images", "categories", "annotations")[rng.integers(3)]]
        position, value = int(rng.integers(len(entries))), VALUES[rng.integers(len(VALUES))]
        if rng.random() < 0.1:
            entries[position] = value
        elif isinstance(entries[position], dict):
            keys = sorted(entries[position])
            entries[position] = entries[position] | {keys[rng.integers(len(keys))]: value}
    tree = read_coco_json(made.save().annotations)
    findings, _ = check_annotations(tree, made.annotations, made.images, "val")
    try:
        made.load()
        refused = False
    except UserError:
        refused = True
    assert refused == any(found.level == "error" for found in findings), findings
