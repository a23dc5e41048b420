"""Studies: their files, the runs they need, and what the reports say."""

import argparse
import csv
import io
import json
from pathlib import Path

import cv2
import pytest
import torchvision
import yaml

import train
from gfl.ablation.study import (
    Row,
    Study,
    comma_separated,
    epochs_begun,
    load_study,
    paired_difference,
    plan,
    read_result,
    summarize,
    table,
)
from gfl.evaluation.plots import plot_study
from gfl.training.signals import StopRequest

STUDIES = sorted((Path(__file__).parent.parent / "configs" / "studies").glob("*.yaml"))
TINY = [
    "model.backbone.weights=none",
    "model.fpn.channels=64",
    "model.head.channels=64",
    "model.head.num_convs=1",
    "data.short_side=64",
    "data.long_side=96",
    "data.workers=0",
    "optim.epochs=1",
    "optim.batch=2",
    "optim.warmup_steps=0",
    "log.images=0",
]
ROWS = [(study, row.name) for study in STUDIES for row in load_study(study).rows]


@pytest.mark.parametrize(("study", "row"), ROWS, ids=[f"{study.stem}-{row}" for study, row in ROWS])
def test_every_row_trains_a_step_and_evaluates(study, row, tmp_path, coco_set):
    data = coco_set([(96, 64), (96, 64)], [(0, 7, [10, 10, 60, 40]), (1, 7, [30, 5, 30, 50])])
    (run,) = plan(study, root=tmp_path, only=[row])
    own = [
        f"data.{split}.{key}={getattr(data, key)}" for split in ("train", "val") for key in ("annotations", "images")
    ]
    arguments = [*run.arguments[1:], *TINY, *own]
    train.main(argparse.Namespace(config=run.arguments[0], overrides=arguments, resume=False), StopRequest([]))
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = next(record for record in records if "loss/cls" in record)
    assert 0 < losses["loss/box"] < 10
    assert "val/AP" in records[-1]


def write_study(path, **changes):
    tree = {"title": "T", "base": "base.yaml", "baseline": "a", "rows": [{"name": "a"}, {"name": "b"}]} | changes
    (path / "study.yaml").write_text(yaml.safe_dump(tree))
    (path / "base.yaml").write_text("optim: {epochs: 3, steps: [1]}")
    return path / "study.yaml"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "all different"),
        ({"rows": [{"overrides": {}}]}, "need names"),
        ({"baseline": "c"}, "no row 'c'"),
        ({"rows": [{"name": "a"}, {"name": "b", "against": "c"}]}, "no row 'c'"),
        ({"rows": [{"name": "a", "paper": {"mAP": 40}}]}, "mAP"),
        ({"rows": [{"name": "a", "paper": {"AP": "40"}}]}, "AP: 40"),
        ({"row": []}, "rows"),
        ({"rows": []}, "needs a title"),
        ({"base": ""}, "needs a title"),
    ],
)
def test_a_wrong_study_is_refused(changes, expected, tmp_path, refusal):
    path = write_study(tmp_path, **changes)
    message = refusal(load_study, path)
    assert str(path) in message
    assert expected in message


def test_overrides_reach_the_config_and_wrong_ones_are_refused(tmp_path, refusal):
    overrides = {"model.head.quality": "none", "optim.steps": [2], "assign.center_radius": 2.5}
    overrides |= {"optim.weight_decay": 1e-5, "model.backbone": {"dcn": "v2", "dcn_stages": ["c3"]}, "run_dir": "7"}
    (run,) = plan(write_study(tmp_path, rows=[{"name": "a", "overrides": overrides}]), root=tmp_path)
    assert (run.config.model.head.quality, run.config.optim.steps) == ("none", (2,))
    assert (run.config.assign.center_radius, run.config.optim.weight_decay) == (2.5, 1e-5)
    assert run.config.model.backbone.dcn_stages == ("c3",)
    wrong = write_study(tmp_path, rows=[{"name": "a", "overrides": {"optim.step": [2]}}])
    assert "optim.step" in refusal(plan, wrong, root=tmp_path)


def test_a_scale_lies_over_the_base_and_under_the_rows(tmp_path):
    rows = [{"name": "a"}, {"name": "b", "overrides": {"optim.batch": 2}}]
    (tmp_path / "scale.yaml").write_text("optim: {epochs: 7, batch: 4}")
    one, two = plan(write_study(tmp_path, rows=rows), root=tmp_path, scale=str(tmp_path / "scale.yaml"))
    assert (one.config.optim.epochs, one.config.optim.batch) == (7, 4)
    assert (two.config.optim.epochs, two.config.optim.batch) == (7, 2)


def test_equal_rows_share_a_folder_seeds_do_not_and_a_changed_config_has_another(tmp_path):
    study = write_study(tmp_path, rows=[{"name": "a"}, {"name": "b", "overrides": {"optim.epochs": 3}}])
    one, two, *_ = runs = plan(study, root=tmp_path / "runs", seeds=2)
    assert [(run.row, run.seed) for run in runs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    again = runs[2]
    assert one.folder == two.folder  # under the name of the row that came first
    (tmp_path / "runs" / f"other-{one.folder.parent.name.rpartition('-')[2]}").mkdir(parents=True)
    assert {run.folder.parent.name[:6] for run in plan(study, root=tmp_path / "runs")} == {"other-"}  # another study's
    assert again.folder == one.folder.with_name("seed1")
    (tmp_path / "base.yaml").write_text("optim: {epochs: 3, steps: [2]}")
    assert plan(study, root=tmp_path / "runs")[0].folder != one.folder


def test_every_row_starts_from_weights_that_exist_somewhere():
    told = (STUDIES[0].parent.parent.parent / "data" / "README.md").read_text()
    for study in STUDIES:
        for run in plan(study, root=Path("runs")):
            backbone = run.config.model.backbone
            known = backbone.name in torchvision.models.list_models()
            assert known if backbone.weights == "torchvision" else backbone.weights in told, (study, run.row)


def test_only_known_rows_are_chosen(tmp_path, refusal):
    study = write_study(tmp_path)
    assert [run.row for run in plan(study, root=tmp_path, only=["b"])] == ["b"]
    assert "no row c; rows: a, b" in refusal(plan, study, root=tmp_path, only=["b", "c"])


def test_a_result_is_the_last_epochs_and_unfinished_runs_have_none(tmp_path):
    (run,) = plan(write_study(tmp_path), root=tmp_path, only=["a"])
    assert read_result(run) is None
    run.folder.mkdir(parents=True)
    metrics = run.folder / "metrics.jsonl"
    metrics.write_text('{"epoch": 2, "val/AP": 0.1}\n{"epoch": 3, "loss/cls": 1.0}\n{"epoch": 3, "val/A')
    assert read_result(run) is None
    assert epochs_begun(run) == 3
    metrics.write_text('{"epoch": 2, "val/AP": 0.1}\n{"epoch": 3, "val/AP": 0.25, "val/APS": 0.5, "val/AR1": 1}\n')
    assert read_result(run) == {"AP": 25.0, "APS": 50.0}


def test_the_interval_is_students_on_differences_paired_by_seed():
    mean, margin = paired_difference([1.0, 2.0, 3.0])
    assert (mean, margin) == (2.0, pytest.approx(4.302653 / 3**0.5))  # t(0.975, 2 degrees of freedom)
    assert paired_difference([2.0]) == (2.0, None)
    assert paired_difference([]) == (None, None)


def outcomes_of(rows, results):
    study = Study(title="T", base="b", baseline="base", rows=tuple(rows))
    found = {key: {"AP": value, "AP50": value + 10} for key, value in results.items()}
    return {outcome.name: outcome for outcome in summarize(study, found)}


def test_differences_are_taken_over_the_seeds_that_both_rows_have():
    rows = [Row("base", paper={"AP": 39.0}), Row("new", paper={"AP": 40.0}), Row("other", against="new")]
    found = outcomes_of(rows, {("base", 0): 1.0, ("base", 1): 3.0, ("new", 1): 5.0, ("new", 2): 90.0})
    assert (found["new"].difference, found["new"].margin, found["new"].paper_difference) == (2.0, None, 1.0)
    assert (found["base"].mean["AP"], found["base"].spread) == (2.0, pytest.approx(2**0.5))
    assert (found["base"].difference, found["base"].verdict) == (None, "")
    assert (found["other"].seeds, found["other"].difference) == (0, None)


@pytest.mark.parametrize(
    ("theirs", "expected"), [([2.0, 2.1, 1.9], "yes"), ([-2.0, -2.1, -1.9], "no"), ([2.0, -2.0, 1.0], "open")]
)
def test_the_verdict_needs_an_interval_on_one_side_of_zero(theirs, expected):
    rows = [Row("base", paper={"AP": 39.0}), Row("new", paper={"AP": 40.0})]
    results = {("base", seed): 0.0 for seed in range(3)} | {("new", seed): ap for seed, ap in enumerate(theirs)}
    assert outcomes_of(rows, results)["new"].verdict == expected
    assert outcomes_of(rows, {("base", 0): 0.0, ("new", 0): theirs[0]})["new"].verdict == "open"


def test_report_and_csv_say_the_same_and_leave_out_what_is_unknown():
    rows = [Row("base", paper={"AP": 39.0}), Row("new, strange"), Row("missing")]
    found = outcomes_of(rows, {("base", 0): 20.0, ("base", 1): 22.0, ("new, strange", 0): 25.0}).values()
    lines = table(found).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "| 21.0 ± 1.4" in lines[2]
    assert "| +5.0" in lines[3]
    written = {row["row"]: row for row in csv.DictReader(io.StringIO(comma_separated(found)))}
    assert written["new, strange"]["AP difference"] == "5.0"
    assert (written["missing"]["AP"], written["base"]["paper AP"]) == ("", "39.0")


def test_every_study_compares_with_the_papers_figures():
    for path in STUDIES:
        study = load_study(path)
        assert sum("AP" in row.paper for row in study.rows) >= 2, path


def test_a_plot_is_drawn_for_one_seed_for_several_and_for_none(tmp_path):
    rows = [Row("base", paper={"AP": 39.0}), Row("new", paper={"AP": 40.0}), Row("missing")]
    one = {("base", 0): 20.0, ("new", 0): 25.0}
    for name, results in (("none", {}), ("one", one), ("two", one | {("base", 1): 21.0, ("new", 1): 24.0})):
        plot_study("T", list(outcomes_of(rows, results).values()), tmp_path / f"{name}.png")
        picture = cv2.imread(str(tmp_path / f"{name}.png"))
        assert picture.std() > 5
