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
    Value,
    background_with_high_quality,
    extra_time,
    format_measures,
    measure_runs,
    peak_over_expectation,
    read_measures,
    spread_against_error,
)
from gfl.ablation.study import StudyOptions
from gfl.checkpoint import detector_content, write_torch_file
from gfl.evaluation.report import load_split


@pytest.fixture
def detectors(coco_set):
    """Builds untrained detectors, by the keys of their heads, whose scores spread around 0.5; and their split."""
    made = coco_set([(96, 64), (80, 60)], [(0, 7, [10, 10, 60, 40]), (1, 7, [5, 20, 30, 30])])
    data = {"val": {"annotations": made.annotations, "images": made.images}}

    def build(**head):
        detector = make_detector(make_config(data=data, **head))
        detector.model.head.cls_out.bias.data.zero_()
        return detector

    return build, load_split(build())


def test_the_background_is_what_lies_in_no_box(detectors):
    build, data = detectors
    branch, joint = build(quality="iou_branch"), build(quality="joint")
    branch.model.head.quality_out.weight.data.mul_(30)
    found = background_with_high_quality(branch, joint, data)
    shares = []
    for detector, of_output in ((branch, lambda o: o.quality_logits), (joint, lambda o: o.cls_logits.amax(-1))):
        high = []
        for batch in measures.batches(measures.build_eval_loader(data, detector.config.data, detector.config.eval)):
            with torch.inference_mode():
                output = detector.model(measures.normalize_images(batch.images, batch.image_sizes))
            for image, (height, width) in enumerate(batch.image_sizes.tolist()):
                for (x, y), logit in zip(output.grid.points.tolist(), of_output(output)[image].tolist(), strict=True):
                    boxes = batch.targets.boxes_xyxy[image][batch.targets.valid[image]].tolist()
                    within = x < -(-width // 32) * 32 and y < -(-height // 32) * 32  # as far as training looks
                    if within and not any(a < x < c and b < y < d for a, b, c, d in boxes):
                        high.append(1 / (1 + np.exp(-logit)) >= HIGH_QUALITY)
        shares.append(100 * sum(high) / len(high))
    assert min(shares) > 0
    assert max(shares) < 100
    assert found.value == pytest.approx(shares[0] - shares[1])
    assert found.detail == f"{shares[0]:.3f} % and {shares[1]:.3f} %"


def test_spread_is_compared_with_the_error_in_strides(detectors, monkeypatch):
    """Of a level of stride 8, in a file that is twice the input in x, only the detection on the object counts."""
    build, data = detectors
    monkeypatch.setattr(measures, "LEAST_IOU", 0.0)
    detector = build()
    loader = measures.build_eval_loader(data, detector.config.data, detector.config.eval)
    found = measures.collect_predictions(detector.model, loader, data, detector.config)
    pairs = []
    for row, side in itertools.product(np.flatnonzero(found.iou > 0), range(4)):
        pixels = found.strides[row] * found.scales[row][side % 2]
        error = abs(found.boxes_xyxy[row, side] - found.true_boxes[row, side])
        pairs.append((found.spreads[row, side] / pixels, error / pixels))
    monkeypatch.setattr(measures, "LEAST_IOU", 1e-9)
    ranks = [np.argsort(np.argsort(column)) for column in np.array(pairs).T]
    expected = Value(np.corrcoef(*ranks)[0, 1], f"{len(pairs)} sides")
    assert spread_against_error(detector, data) == (pytest.approx(expected.value, abs=0.01), expected.detail)


def test_the_peak_is_compared_with_the_expectation_of_the_same_weights(detectors, tmp_path):
    build, data = detectors
    detector, path = build(), tmp_path / "last.pt"
    write_torch_file(path, detector_content(detector.model.state_dict(), detector.config, detector.class_names))
    found = peak_over_expectation(replace(detector, checkpoint=path), data)
    at_peak, at_mean = (float(part) for part in found.detail.removeprefix("AP ").split(" and "))
    assert found.value == pytest.approx(at_peak - at_mean, abs=0.02)
    assert at_peak != at_mean


def test_extra_time_is_that_of_medians_without_the_first_pass(detectors, monkeypatch):
    build, data = detectors
    monkeypatch.setattr(measures, "PASSES", 3)
    durations = [(9.0, 1.0), (0.11, 0.10), (0.30, 0.10), (0.11, 0.20)]  # of both, of neither
    clock = itertools.chain.from_iterable((0.0, seconds) for pair in durations for seconds in pair)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    found = extra_time(build(), build(quality="centerness_branch", box="anchor_delta"), data)
    assert found == (pytest.approx(10.0), "55.00 and 50.00 ms per image")


def test_runs_that_are_not_finished_are_named_with_their_command(tmp_path, refusal):
    options = StudyOptions("", "configs/scales/shapes.yaml", range(2), out=tmp_path)
    for name, measure in MEASURES.items():
        refused = refusal(lambda name=name: list(measure_runs(options, name, ROOT / "configs" / "studies")))
        assert refused.code == "measure_runs"
        assert all(word in refused for word in (f"{measure.study}.yaml", "--seeds 2"))


def test_written_measures_are_read_again(tmp_path, refusal):
    path = tmp_path / "measures.csv"
    path.write_text(
        format_measures([("peak", 0, Value(0.25, "a, b")), ("peak", 1, Value(-1, "")), ("cost", 0, Value(2, ""))])
    )
    assert read_measures(path) == {"peak": [0.25, -1.0], "cost": [2.0]}
    for text in ("measure,seed\npeak,0\n", "measure,value\npeak,much\n", "measure,value\npeak,nan\n"):
        path.write_text(text)
        assert refusal(read_measures, path).code == "measures"
