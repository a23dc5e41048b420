"""The analysis of checkpoints: their names, what is refused, and which parts a report has."""

import json
from dataclasses import replace

import pytest
from tiny_detector import make_config, make_detector

from gfl.common.errors import UserError
from gfl.common.files import output_folder
from gfl.config_file import config_from_dict
from gfl.evaluation.report import ReportOptions, format_report, load_split, plot_comparison, short_names, write_report


def code_of(function, *args):
    with pytest.raises(UserError) as error:
        function(*args)
    return error.value.code


@pytest.fixture
def drawn(coco_set):
    """One image with a box whose edges have a known blur."""
    made = coco_set([(96, 64)], [(0, 7, [10, 10, 60, 40])])
    made.tree["annotations"][0]["edge_sigma"] = [0.5, 1.0, 2.0, 4.0]
    return made.save()


def detector_on(drawn, **head):
    data = {"val": {"annotations": drawn.annotations, "images": drawn.images}}
    return make_detector(make_config(data=data, evaluation={"max_detections": 5, "nms_iou": 1.0}, **head))


def report_on(name, detector, out, **options):
    data = load_split(detector)
    return write_report(name, f"runs/{name}", detector, data, ReportOptions(out, **options))


@pytest.mark.parametrize(
    ("checkpoints", "names"),
    [
        (["runs/a"], ["a"]),
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["runs/a/best.pt", "runs/b/best.pt"], ["a-best", "b-best"]),
        (["x/lr0.01", "x/lr0.02"], ["lr0.01", "lr0.02"]),
        (["x/a/run", "y/a/run"], ["x-a-run", "y-a-run"]),
    ],
)
def test_names_have_as_much_of_the_path_as_distinguishes_them(checkpoints, names):
    assert short_names(checkpoints) == names


def test_the_same_checkpoint_twice_is_refused():
    assert code_of(short_names, ["runs/a", "runs/b", "runs/../runs/a"]) == "same_checkpoint"


def test_a_file_cannot_be_the_output_folder(tmp_path, refusal):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal(output_folder, str(tmp_path / "file"))
    assert output_folder(str(tmp_path / "new")) == tmp_path / "new"


def test_a_split_without_boxes_and_a_config_without_data_are_refused(drawn, refusal):
    detector = detector_on(drawn)
    assert len(load_split(detector).labels) == 1
    drawn.tree["annotations"] = []
    drawn.save()
    assert code_of(load_split, detector, (drawn.annotations, drawn.images)) == "no_boxes"
    without_data = config_from_dict({}, "test")
    assert "--data" in refusal(load_split, replace(detector, config=without_data))


def test_no_detections_are_refused(drawn, tmp_path):
    detector = detector_on(drawn)
    config = replace(detector.config, eval=replace(detector.config.eval, score_thresh=1.0))
    assert code_of(report_on, "a", replace(detector, config=config), tmp_path) == "no_detections"


def test_a_report_has_the_parts_that_the_detector_and_the_data_allow(drawn, tmp_path):
    general = report_on("general", detector_on(drawn), tmp_path, min_score=0.0, max_examples=1)
    dirac = report_on("dirac", detector_on(drawn, box="dirac", quality="iou_branch"), tmp_path)
    plot_comparison([general, dirac], tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"scores.png", "shapes.png", "general.targets.png", "dirac.targets.png"} <= written
    shown = {shape.replace(" ", "_") for shape, share in general.statistics["shapes"].items() if share}
    assert {name for name in written if name.endswith(".0.png")} == {f"general.{shape}.0.png" for shape in shown}
    assert sum(general.statistics["shapes"].values()) == pytest.approx(1)
    assert general.statistics["scores"]["detections"] == 5
    assert general.statistics["targets"] == dirac.statistics["targets"]
    assert "shapes" not in dirac.statistics
    assert dirac.statistics["spread"] is None
    json.dumps([general.statistics, dirac.statistics], allow_nan=False)


def test_the_spread_is_compared_with_the_blur_where_it_is_known(drawn, tmp_path):
    detector = detector_on(drawn)
    x1, y1, x2, y2 = report_on("before", detector, tmp_path).found.boxes_xyxy[0].tolist()
    drawn.tree["annotations"][0]["bbox"] = [x1, y1, x2 - x1, y2 - y1]  # now the detection is right
    drawn.save()
    report = report_on("after", detector, tmp_path)
    accurate = (report.found.iou >= 0.7).sum()
    assert accurate >= 1
    assert report.statistics["spread"]["sides"] == 4 * accurate
    assert (tmp_path / "after.spread.png").is_file()
    assert "blur" in format_report(report)


def test_targets_that_depend_on_predictions_are_not_known(drawn, tmp_path):
    detector = detector_on(drawn)
    by_predictions = replace(detector.config, assign=replace(detector.config.assign, kind="tal"))
    report = report_on("a", replace(detector, config=by_predictions), tmp_path)
    assert report.statistics["targets"] is None
    assert not (tmp_path / "a.targets.png").exists()
    assert "not known" in format_report(report)


def test_boxes_that_no_point_learns_are_reported(drawn, tmp_path):
    drawn.tree["annotations"][0]["bbox"] = [0, 0, 1.5, 1.5]  # below every stride
    report = report_on("a", detector_on(drawn.save()), tmp_path)
    assert report.statistics["targets"] == {"points": 0}
    assert not (tmp_path / "a.targets.png").exists()
    assert "no point" in format_report(report)
