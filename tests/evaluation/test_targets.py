"""Target distances and the recommended reg_max, against constructed cases."""

import numpy as np
import pytest

from gfl.config import AssignConfig, Config, DataConfig, HeadConfig, ModelConfig
from gfl.evaluation.targets import RegressionTargets, regression_targets, target_statistics


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


def test_a_limited_number_of_boxes_limits_the_images(coco_set):
    data = coco_set([(40, 40)] * 60, [(n, 7, [5, 5, 20, 20]) for n in range(60) for _ in range(10)]).load()
    assert [regression_targets(data, config_of(), max_boxes=count).images for count in (None, 300, 600)] == [60, 30, 60]
    assert len(regression_targets(data, config_of(), max_boxes=300).points) == 300
