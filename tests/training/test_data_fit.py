"""Object sizes, points per object and findings, against constructed cases."""

from dataclasses import replace

import pytest

from gfl.config import AssignConfig, Config, DataConfig, HeadConfig, ModelConfig
from gfl.training.data_fit import fit_findings, fit_notes, fit_statistics, object_sizes


def config_of(*, short_side=128, long_side=256, assign="atss", **head):
    data = DataConfig(short_side=short_side, long_side=long_side)
    return Config(model=ModelConfig(head=HeadConfig(**head)), data=data, assign=AssignConfig(kind=assign))


def test_sizes_are_measured_in_the_file_and_in_the_input(coco_set):
    data = coco_set([(60, 40), (64, 128)], [(0, 7, [1, 1, 9, 4]), (1, 7, [1, 1, 10, 10])]).load()
    in_file, in_input = object_sizes(data, config_of(short_side=80, long_side=160))  # resized 2 and 1.25 times
    assert in_file.tolist() == [6, 10]
    assert in_input.tolist() == pytest.approx([12, 12.5])


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


def test_what_an_assigner_by_predictions_leaves_unknown_is_said_and_warns_of_nothing(coco_set):
    data = coco_set([(128, 128)], [(0, 7, [10, 10, 4, 4]), (0, 7, [60, 60, 40, 40])]).load()
    statistics = fit_statistics(data, config_of(assign="tal"), max_boxes=1000)
    assert (statistics["assigned"], statistics["targets"]) == (None, None)
    small, unknown = fit_findings(statistics, config_of(assign="tal"))
    assert [(found.level, found.count) for found in (small, unknown)] == [("warning", 1), ("ok", 2)]
    assert "tal" in unknown.what
    assert len(fit_notes(data, data, config_of(assign="tal"))) == 1  # on the small object


def test_sides_beyond_reg_max_are_reported_with_a_better_value(coco_set):
    data = coco_set([(128, 128)], [(0, 7, [10, 10, 60, 60])]).load()
    config = config_of(reg_max=2)
    recommended = fit_statistics(data, config, max_boxes=1000)["targets"]["recommended_reg_max"]
    (note,) = fit_notes(data, data, config)
    assert f"model.head.reg_max={recommended}" in note
    assert fit_notes(data, data, config_of(reg_max=recommended)) == []
    assert fit_notes(data, data, config_of(reg_max=2, box="dirac")) == []  # which has no range


def test_range_aware_assignment_is_an_alternative_where_it_leaves_few_sides_beyond(coco_set):
    data = coco_set([(128, 128)], [(0, 7, [4, 4, 120, 120])]).load()
    (note,) = fit_notes(data, data, config_of(reg_max=4))
    assert "assign.range_aware=true" in note
    for kind, box in (("max_iou", "general"), ("fcos", "general"), ("atss", "dirac")):
        notes = fit_notes(data, data, config_of(reg_max=2, assign=kind, box=box))
        assert not any("range_aware" in note for note in notes)
    config = config_of(reg_max=4)
    aware = replace(config, assign=replace(config.assign, range_aware=True))
    before, after = (fit_statistics(data, each, max_boxes=100)["targets"] for each in (config, aware))
    assert before["share_beyond"] > 0.1
    assert after["share_beyond"] == before["share_beyond_range_aware"] == 0
    assert fit_notes(data, data, aware) == []


def test_a_reg_max_beyond_its_limit_is_not_advised(coco_set):
    data = coco_set([(128, 128)], [(0, 7, [10, 10, 60, 60])]).load()
    (note,) = fit_notes(data, data, config_of(delta=0.001))
    assert "model.head.delta" in note
    assert "model.head.reg_max=" not in note


def test_classes_without_boxes_are_reported_for_each_split(coco_set):
    boxes = [(0, 1, [10, 10, 40, 40]), (0, 2, [60, 60, 50, 50])]
    names = {1: "cat", 2: "dog", 3: "emu"}
    train = coco_set([(128, 128)], boxes, categories=names).load()
    val = coco_set([(128, 128)], boxes[:1], categories=names, name="val").load()
    first, second = fit_notes(train, val, config_of())
    assert all(part in first for part in ("train", "emu"))
    assert all(part in second for part in ("val", "dog, emu"))


def test_classes_named_like_regions_are_reported_with_the_option_that_leaves_them_out(coco_set):
    boxes = [(0, 1, [10, 10, 40, 40]), (0, 2, [60, 60, 50, 50])]
    data = coco_set([(128, 128)], boxes, categories={1: "ignored regions", 2: "car"}).load()
    (note,) = fit_notes(data, data, config_of())
    assert '"data.ignore_classes=[ignored regions]"' in note
