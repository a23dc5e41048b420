"""An image's detections do not depend on the images that share its batch."""

from dataclasses import replace

import pytest
import torch
from tiny_detector import make_config, make_detector

from gfl.data.dataset import Sample, collate
from gfl.data.loader import build_eval_loader
from gfl.evaluation.coco_eval import run_detector
from gfl.evaluation.inference import detect
from gfl.structures import SIZE_DIVISOR

SIZES = [(96, 64), (64, 96), (96, 70), (64, 64), (150, 100), (60, 93), (90, 64), (70, 96), (33, 31)]


VIEWS = {"evaluation": {"tta_scales": [1.0, 0.7], "tta_flip": True}}


@pytest.mark.parametrize(
    "settings", [{}, {"quality": "iou_branch", "box": "dirac"}, VIEWS], ids=["joint", "iou_branch", "views"]
)
def test_detections_of_mixed_sizes_do_not_depend_on_the_batch(settings, coco_set):
    data = coco_set(SIZES, [(0, 7, [10, 10, 40, 40])]).load()
    config = make_config(**settings)
    model, runs = make_detector(config).model, []
    for batch in (1, 9):
        loader = build_eval_loader(data, config.data, replace(config.eval, batch=batch))
        runs.append(run_detector(model, loader, data, config.eval, torch.device("cpu")))
    assert [result["image_id"] for result in runs[0]] == [result["image_id"] for result in runs[1]]
    for one, other in zip(*runs, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=2e-3)


def test_points_in_the_padding_of_a_batch_detect_nothing():
    """An image of 64 x 64 beside one of 192 x 192: only points of its own 64 x 64 detect."""
    config = make_config(evaluation={"max_detections": 5000, "nms_iou": 1.0})
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            torch.randint(256, (side, side, 3), generator=generator, dtype=torch.uint8).numpy(),
            torch.zeros(0, 4).numpy(),
            torch.zeros(0, dtype=torch.int64).numpy(),
            side,
            (side, side),
        )
        for side in (60, 192)
    ]
    detections, output = detect(make_detector(config).model, collate(samples), config.eval)
    small = detections.point_index[0][detections.labels[0] >= 0]
    assert len(small) > 50
    cell = torch.floor(output.grid.points[small] / output.grid.strides[small, None]) * output.grid.strides[small, None]
    assert (cell < 2 * SIZE_DIVISOR).all()
