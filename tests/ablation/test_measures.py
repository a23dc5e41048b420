"""Measures of trained runs, against sums over single points, sides and times."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from printed_commands import ROOT
from tiny_detector import make_config, make_detector

from gfl.ablation import measures
from gfl.ablation.measures import (
    HIGH_QUALITY,
    MEASURES,
    background_with_high_quality,
    extra_time,
    measure_runs,
    peak_over_expectation,
    spread_against_error,
)
from gfl.ablation.study import StudyOptions
from gfl.checkpoint import detector_content, load_detector, write_torch_file
from gfl.evaluation.coco_eval import coco_metrics, run_detector
from gfl.evaluation.predictions import collect_predictions
from gfl.evaluation.report import load_split
from gfl.model.detector import normalize_images

STUDIES = ROOT / "configs" / "studies"


@pytest.fixture
def detectors(coco_set):
    """Builds untrained detectors, by the keys of their heads, whose scores spread around 0.5; and their split.

    Of one image the network gets half the width and height of the file, of the other a third.
    """
    boxes = [(0, 7, [10, 10, 160, 100]), (0, 7, [0, 0, 40, 50]), (1, 7, [15, 60, 90, 90])]
    made = coco_set([(192, 128), (288, 192)], boxes)
    crowd = {"id": 99, "image_id": made.tree["images"][1]["id"], "bbox": [200, 100, 80, 80], "iscrowd": 1}
    made.tree["annotations"].append(made.tree["annotations"][0] | crowd)
    made.save()
    data = {"val": {"annotations": made.annotations, "images": made.images}}

    def build(**head):
        detector = make_detector(make_config(data=data, **head))
        detector.model.head.cls_out.bias.data.zero_()
        return detector

    return build, load_split(build())


def batches(detector, data):
    return measures.batches(measures.build_eval_loader(data, detector.config.data, detector.config.eval))


def test_the_background_is_what_lies_in_no_box_and_no_region_to_ignore(detectors):
    build, data = detectors
    assert len(data.ignored_xyxy) == 1
    branch, joint = build(quality="iou_branch"), build(quality="joint")
    branch.model.head.quality_out.weight.data.mul_(300)
    joint.model.head.cls_out.weight.data.mul_(3)
    found = background_with_high_quality(branch, joint, data)
    shares = []
    for detector, of_output in ((branch, lambda o: o.quality_logits), (joint, lambda o: o.cls_logits.amax(-1))):
        high = []
        for batch in batches(detector, data):
            with torch.inference_mode():
                output = detector.model(normalize_images(batch.images, batch.image_sizes))
            for image, logits in enumerate(of_output(output).tolist()):
                row = data.image_ids.tolist().index(batch.image_ids[image])
                boxes = [*data.boxes_of(row)[0].tolist(), *data.ignored_of(row).tolist()]
                factor = batch.orig_sizes[image, 0].item() / batch.image_sizes[image, 0].item()
                for (x, y), logit in zip(output.grid.points.tolist(), logits, strict=True):
                    if not any(a < factor * x < c and b < factor * y < d for a, b, c, d in boxes):
                        high.append(1 / (1 + np.exp(-logit)) >= HIGH_QUALITY)
        shares.append(100 * sum(high) / len(high))
    assert min(shares) > 0
    assert max(shares) < 100
    assert shares[0] != shares[1]
    assert found.value == pytest.approx(shares[0] - shares[1])
    assert found.detail == f"{shares[0]:.3f} % and {shares[1]:.3f} %"


def test_spread_is_compared_with_the_error_within_levels_and_within_the_image(detectors, monkeypatch):
    build, data = detectors
    monkeypatch.setattr(measures, "LEAST_IOU", 0.05)
    detector = build()
    loader = measures.build_eval_loader(data, detector.config.data, detector.config.eval)
    found = collect_predictions(detector.model, loader, data, detector.config)
    by_level = {}
    for row, side in itertools.product(np.flatnonzero(found.iou >= 0.05), range(4)):
        truth, size = found.true_boxes[row, side], data.sizes[found.images[row]][1 - side % 2]
        if 0 < truth < size:
            pair = (found.spreads[row, side], abs(found.boxes_xyxy[row, side] - truth))
            by_level.setdefault(found.strides[row], []).append(pair)
    parts = []
    for pairs in by_level.values():
        spread, error = np.array(pairs).T
        ranks = [np.array([(np.sum(c < x) + np.sum(c <= x)) / 2 for x in c]) for c in (spread, error)]
        parts.append((np.corrcoef(*ranks)[0, 1], len(pairs)))
    assert len(parts) > 1
    sides = sum(count for _, count in parts)
    assert sides < 4 * (found.iou >= 0.05).sum()  # some lie on the border
    expected = sum(value * count for value, count in parts) / sides
    assert spread_against_error(detector, data) == (pytest.approx(expected), f"{sides} sides of {len(parts)} levels")


def test_the_expectation_is_taken_from_the_peak_of_the_same_weights(detectors, tmp_path):
    build, data = detectors
    detector, path = build(), tmp_path / "last.pt"
    detector.model.head.reg_out.weight.data.mul_(4)  # several modes per side
    write_torch_file(path, detector_content(detector.model.state_dict(), detector.config, detector.class_names))

    def average_precision(decode):
        other = load_detector(path, [f"eval.decode={decode}"], device="cpu")
        found = run_detector(other.model, batches(other, data), data, other.config.eval, torch.device("cpu"))
        return 100 * coco_metrics(data, found)["AP"]

    at_peak, at_mean = average_precision("peak"), average_precision("expectation")
    assert at_peak != at_mean
    found = peak_over_expectation(replace(detector, checkpoint=path), data)
    assert found == (pytest.approx(at_peak - at_mean), f"AP {at_peak:.2f} and {at_mean:.2f}")


def test_extra_time_is_that_of_medians_without_the_first_pass(detectors, monkeypatch):
    build, data = detectors
    monkeypatch.setattr(measures, "PASSES", 3)
    durations = [(9.0, 1.0), (0.10, 0.11), (0.30, 0.10), (0.20, 0.11)]  # of both and neither, in turn the first
    clock = itertools.chain.from_iterable((0.0, seconds) for pair in durations for seconds in pair)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    found = extra_time(build(), build(quality="centerness_branch", box="anchor_delta"), data)
    assert found == (pytest.approx(10.0), "55.00 and 50.00 ms per image")


def test_runs_that_are_not_finished_are_named_with_their_command_before_anything_is_measured(tmp_path, refusal):
    options = StudyOptions("", "configs/scales/shapes.yaml", range(3, 5), out=tmp_path)
    refused = refusal(next, measure_runs(options, STUDIES, ["peak"]))
    assert refused.code == "measure_runs"
    assert all(word in refused for word in ("table3.yaml", "--seeds 3-4", f"--out {tmp_path}"))


def test_the_script_offers_every_measure(script):
    assert tuple(MEASURES) == script("measure").NAMES
