"""Distances to learn, object sizes and points per object, against constructed cases."""

from dataclasses import replace

import numpy as np
import pytest

from gfl.config import AssignConfig, Config, DataConfig, HeadConfig, ModelConfig
from gfl.training.data_fit import (
    FEW,
    RegressionTargets,
    fit_findings,
    fit_notes,
    fit_statistics,
    object_sizes,
    regression_targets,
    target_statistics,
)


def config_of(*, short_side=128, assign="atss", **head):
    data = DataConfig(short_side=short_side, long_side=2 * short_side)
    return Config(model=ModelConfig(head=HeadConfig(**head)), data=data, assign=AssignConfig(kind=assign))


def learned(distances, levels=None):
    levels = np.zeros(len(distances), np.int64) if levels is None else levels
    return RegressionTargets(distances, levels, np.ones(len(distances), np.int64), images=1)


@pytest.mark.parametrize("reg_max", [2, 16])
def test_targets_add_up_to_the_boxes_and_are_on_their_level(reg_max, coco_set):
    drawn = coco_set([(192, 128), (64, 128)], [(0, 7, [10, 10, 90, 60]), (1, 7, [8, 16, 40, 20])]).load()
    config = replace(config_of(reg_max=reg_max), data=DataConfig(short_side=256, long_side=384))
    found = regression_targets(drawn, config)
    strides = np.array(config.model.points.strides)[found.levels]
    sides = (found.distances[:, :2] + found.distances[:, 2:]) * strides[:, None]
    # images 2 and 3 times as large, by the short and the long side
    assert {tuple(size) for size in sides.round(3).tolist()} == {(180.0, 120.0), (120.0, 60.0)}
    assert len(set(found.levels.tolist())) > 1
    assert found.points.sum() == len(found.distances)
    assert found.images == 2


def test_the_shares_beyond_are_those_of_each_level():
    distances = np.array([[1, 2, 3, 17.0], [1, 1, 1, 1], [20, 20, 1, 16]])
    told = target_statistics(learned(distances, np.array([0, 0, 2])), config_of())
    assert told["share_beyond"] == 3 / 12
    assert told["share_beyond_by_stride"] == {"8": 1 / 8, "32": 2 / 4}
    assert told["points_by_stride"] == {"8": 2, "16": 0, "32": 1, "64": 0, "128": 0}
    assert told["largest"] == 20


def test_the_recommended_reg_max_leaves_one_side_in_a_thousand_beyond():
    config = config_of(delta=0.5)
    distances = np.linspace(0, 10, 4000).reshape(-1, 4)
    wanted = target_statistics(learned(distances), config)["recommended_reg_max"]
    assert (distances / 0.5 > wanted).mean() <= 0.001 < (distances / 0.5 > wanted - 1).mean()
    assert target_statistics(learned(np.zeros((0, 4))), config) == {"points": 0}


def test_sizes_are_of_the_file_and_of_the_input(coco_set):
    data = coco_set([(60, 40), (64, 128)], [(0, 7, [1, 1, 9, 4]), (1, 7, [1, 1, 10, 10])]).load()
    in_file, in_input = object_sizes(data, config_of(short_side=80))  # resized 2 and 1.25 times
    assert in_file.tolist() == [6, 10]
    assert in_input.tolist() == pytest.approx([12, 12.5])


def test_a_sample_has_evenly_chosen_images(coco_set):
    data = coco_set([(40, 40)] * 60, [(n, 7, [5, 5, 20, 20]) for n in range(60) for _ in range(10)]).load()
    assert regression_targets(data, config_of()).images == 60
    some = regression_targets(data, config_of(), most_boxes=300)
    assert (some.images, len(some.points)) == (30, 300)
    assert regression_targets(data, config_of(), most_boxes=600).images == 60


def findings(data, config):
    found = fit_findings(fit_statistics(data, config, most_boxes=1000), config)
    return {(entry.level, entry.what.split(")")[-1].strip() or entry.what): entry.count for entry in found}


def test_data_that_fit_give_no_findings(coco_set):
    data = coco_set([(128, 128)], [(0, 7, [10, 10, 40, 40]), (0, 7, [60, 60, 50, 50])]).load()
    assert findings(data, config_of()) == {}
    assert fit_notes(data, data, config_of()) == []


def test_small_objects_and_those_without_a_point_are_told(coco_set):
    # FCOS gives a point to a box only if one lies within; this one lies between the points
    data = coco_set([(128, 128)], [(0, 7, [10, 10, 4, 4]), (0, 7, [60, 60, 40, 40])]).load()
    told = findings(data, config_of(assign="fcos"))
    assert told["warning", "under the finest stride, 8 px"] == 1
    assert told["warning", "that no point learns"] == 1
    assert told["ok", f"with under {FEW} points"] == 1


def test_a_share_of_sides_beyond_reg_max_is_told_with_the_value_to_take(coco_set):
    data = coco_set([(128, 128)], [(0, 7, [10, 10, 60, 60])]).load()
    config = config_of(reg_max=2)
    wanted = fit_statistics(data, config, most_boxes=1000)["targets"]["recommended_reg_max"]
    (note,) = fit_notes(data, data, config)
    assert "beyond reg_max 2" in note
    assert f"model.head.reg_max={wanted}" in note
    assert fit_notes(data, data, config_of(reg_max=wanted)) == []
    assert fit_notes(data, data, config_of(reg_max=2, box="dirac")) == []  # it has no range


def test_classes_without_boxes_are_told_for_each_split(coco_set):
    boxes = [(0, 1, [10, 10, 40, 40]), (0, 2, [60, 60, 50, 50])]
    names = {1: "cat", 2: "dog", 3: "emu"}
    train = coco_set([(128, 128)], boxes, categories=names).load()
    val = coco_set([(128, 128)], boxes[:1], categories=names, name="val").load()
    notes = fit_notes(train, val, config_of())
    assert [note.split(";")[0] for note in notes] == [
        "1 classes without train boxes: emu",
        "2 classes without val boxes: dog, emu",
    ]
