"""Measures of trained runs, against sums over single points, sides and times."""

import argparse
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
    Measured,
    Value,
    background_with_high_quality,
    extra_time,
    format_lines,
    measure_runs,
    peak_over_expectation,
    read_lines,
    read_measures,
    spread_against_error,
    values_of,
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


def measured(name, seed, value, detail="", **ap):
    return Measured(name, seed, Value(value, detail), ap)


def lines_of(*values):
    return {(each.name, each.seed): each.line("a machine") for each in values}


def test_written_measures_are_read_again_unless_they_are_no_such_measures_or_doubled(tmp_path, refusal):
    path, other = tmp_path / "measures.csv", tmp_path / "measures.2.csv"
    cost = measured("cost", 0, 2, both=70.0, neither=60.0)
    lines = lines_of(measured("peak", 0, 0.25, "a, b", both=70.0), cost, measured("peak", 1, -1, both=71.0))
    text = format_lines(lines)
    path.write_text(text)
    assert read_lines(path) == lines
    other.write_text(format_lines(lines_of(measured("peak", 2, 3, both=72.0))))
    assert set(read_measures([path, other])) == {("peak", 0), ("peak", 1), ("peak", 2), ("cost", 0)}
    assert refusal(read_measures, [path, path]).code == "measures"
    path.write_text(text + text.splitlines()[-1])
    assert refusal(read_lines, path).code == "measures"
    broken = [("detail", "other"), ("0.25", "much"), ("0.25", "nan"), ("both", "none"), ("cost", "nothing")]
    for old, new in [*broken, ("machine,", "machine,,"), ('"{', '"')]:
        assert old in text
        path.write_text(text.replace(old, new))
        assert refusal(read_lines, path).code == "measures"


def test_values_are_of_the_runs_in_the_results(refusal):
    lines = lines_of(measured("peak", 0, 0.25, both=70.0), measured("cost", 0, 2, both=70.0, neither=60.0))
    results = {("both", 0): {"AP": 70.0000000004}, ("neither", 0): {"AP": 61.0}}
    assert values_of("peak", lines, results) == [0.25]
    assert values_of("spread", lines, results) == []
    assert refusal(values_of, "cost", lines, results).code == "measures"
    assert refusal(values_of, "peak", lines, {}).code == "measures"


def test_the_script_keeps_what_it_does_not_measure(script, tmp_path, monkeypatch):
    measure, path = script("measure"), tmp_path / "measures-shapes.csv"
    old = [measured("peak", 0, 1, both=5.0), measured("peak", 1, 2, both=5.0)]
    cost = measured("cost", 0, 3, both=5.0, neither=5.0)
    path.write_text(format_lines(lines_of(*old, cost)))
    new = measured("peak", 1, 4, both=6.0)

    def measure_one_and_fail(*_):
        yield new
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure_runs", measure_one_and_fail)
    scale = str(ROOT / "configs" / "scales" / "shapes.yaml")
    with pytest.raises(KeyboardInterrupt):
        measure.main(argparse.Namespace(scale=scale, seeds=range(1, 3), measures=["peak"], out=str(tmp_path)))
    values = {key: (line["value"], line["AP"]) for key, line in read_lines(path).items()}
    assert values == {
        ("peak", 0): ("1", '{"both": 5.0}'),
        ("peak", 1): ("4", '{"both": 6.0}'),
        ("cost", 0): ("3", '{"both": 5.0, "neither": 5.0}'),
    }


def test_the_script_offers_every_measure(script):
    assert tuple(MEASURES) == script("measure").NAMES
