"""Target distances, object sizes and points per object, against constructed cases."""

import numpy as np
import pytest

from gfl.config import AssignConfig, Config, DataConfig, HeadConfig, ModelConfig
from gfl.training.data_fit import (
    RegressionTargets,
    fit_findings,
    fit_notes,
    fit_statistics,
    object_sizes,
    regression_targets,
    target_statistics,
)


def config_of(*, short_side=128, long_side=256, assign="atss", **head):
    data = DataConfig(short_side=short_side, long_side=long_side)
    return Config(model=ModelConfig(head=HeadConfig(**head)), data=data, assign=AssignConfig(kind=assign))


def targets_of(distances, levels=None):
    levels = np.zeros(len(distances), np.int64) if levels is None else levels
    return RegressionTargets(distances, levels, np.ones(len(distances), np.int64), images=1)


@pytest.mark.parametrize("reg_max", [2, 16])
def test_distances_add_up_to_the_boxes_in_strides_of_their_level(reg_max, coco_set):
    data = coco_set([(192, 128), (64, 128)], [(0, 7, [10, 10, 90, 60]), (1, 7, [8, 16, 40, 20])]).load()
    config = config_of(short_side=256, long_side=384, reg_max=reg_max)
    found = regression_targets(data, config)
    strides = np.array(config.model.points.strides)[found.levels]
    sides = (found.distances[:, :2] + found.distances[:, 2:]) * strides[:, None]
    # The images are resized 2 and 3 times, limited by the short and the long side.
    assert {tuple(size) for size in sides.round(3).tolist()} == {(180.0, 120.0), (120.0, 60.0)}
    assert len(set(found.levels.tolist())) > 1
    assert found.points.sum() == len(found.distances)
    assert found.images == 2


def test_shares_beyond_reg_max_are_those_of_each_level():
    distances = np.array([[1, 2, 3, 17.0], [1, 1, 1, 1], [20, 20, 1, 16]])
    statistics = target_statistics(targets_of(distances, np.array([0, 0, 2])), config_of())
    assert statistics["share_beyond"] == 3 / 12
    assert statistics["share_beyond_by_stride"] == {"8": 1 / 8, "32": 2 / 4}
    assert statistics["points_by_stride"] == {"8": 2, "16": 0, "32": 1, "64": 0, "128": 0}
    assert statistics["largest"] == 20


def test_the_recommended_reg_max_leaves_one_side_in_a_thousand_beyond():
    config, distances = config_of(delta=0.5), np.linspace(0, 10, 4000).reshape(-1, 4)
    recommended = target_statistics(targets_of(distances), config)["recommended_reg_max"]
    assert (distances / 0.5 > recommended).mean() <= 0.001 < (distances / 0.5 > recommended - 1).mean()
    assert target_statistics(targets_of(np.zeros((0, 4))), config) == {"points": 0}


def test_sizes_are_measured_in_the_file_and_in_the_input(coco_set):
    data = coco_set([(60, 40), (64, 128)], [(0, 7, [1, 1, 9, 4]), (1, 7, [1, 1, 10, 10])]).load()
    in_file, in_input = object_sizes(data, config_of(short_side=80, long_side=160))  # resized 2 and 1.25 times
    assert in_file.tolist() == [6, 10]
    assert in_input.tolist() == pytest.approx([12, 12.5])


def test_a_limited_number_of_boxes_limits_the_images(coco_set):
    data = coco_set([(40, 40)] * 60, [(n, 7, [5, 5, 20, 20]) for n in range(60) for _ in range(10)]).load()
    assert [regression_targets(data, config_of(), max_boxes=count).images for count in (None, 300, 600)] == [60, 30, 60]
    assert len(regression_targets(data, config_of(), max_boxes=300).points) == 300


def test_data_that_fit_give_no_findings(coco_set):
    data = coco_set([(128, 128)], [(0, 7, [10, 10, 40, 40]), (0, 7, [60, 60, 50, 50])]).load()
    assert fit_findings(fit_statistics(data, config_of(), max_boxes=1000), config_of()) == []
    assert fit_notes(data, data, config_of()) == []


def test_small_objects_and_those_without_a_point_are_findings(coco_set):
    # FCOS gives a point to a box only if one lies within; the first box lies between the points.
    data = coco_set([(128, 128)], [(0, 7, [10, 10, 4, 4]), (0, 7, [60, 60, 40, 40])]).load()
    config = config_of(assign="fcos")
    small, without, few = fit_findings(fit_statistics(data, config, max_boxes=1000), config)
    assert [(found.level, found.count) for found in (small, without, few)] == [
        ("warning", 1),
        ("warning", 1),
        ("ok", 1),
    ]
    assert "8 px" in small.what
    assert "data.short_side" in small.advice
    assert "assign.kind" in without.advice


def test_sides_beyond_reg_max_are_reported_with_a_better_value(coco_set):
    data = coco_set([(128, 128)], [(0, 7, [10, 10, 60, 60])]).load()
    config = config_of(reg_max=2)
    recommended = fit_statistics(data, config, max_boxes=1000)["targets"]["recommended_reg_max"]
    (note,) = fit_notes(data, data, config)
    assert f"model.head.reg_max={recommended}" in note
    assert fit_notes(data, data, config_of(reg_max=recommended)) == []
    assert fit_notes(data, data, config_of(reg_max=2, box="dirac")) == []  # which has no range


def test_classes_without_boxes_are_reported_for_each_split(coco_set):
    boxes = [(0, 1, [10, 10, 40, 40]), (0, 2, [60, 60, 50, 50])]
    names = {1: "cat", 2: "dog", 3: "emu"}
    train = coco_set([(128, 128)], boxes, categories=names).load()
    val = coco_set([(128, 128)], boxes[:1], categories=names, name="val").load()
    first, second = fit_notes(train, val, config_of())
    assert all(part in first for part in ("train", "emu"))
    assert all(part in second for part in ("val", "dog, emu"))
