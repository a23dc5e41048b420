"""train.py in real processes: resuming, several processes, fine-tuning, and settings that are refused."""

import json
import shutil
import signal

import pytest
import torch
from command_line import TWO_PROCESSES, Project, records, refuse, succeed, train_and_signal, weights

pytestmark = pytest.mark.robustness


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("project"))


def test_training_prints_what_it_will_do_and_the_next_command(project):
    run = project.trained
    for fragment in ("20 of 20 images", "4: 0 rectangle (id 1)", "parameters", "4 = 1 process", "2 epochs x 5 = 10"):
        assert fragment in project.printed
    assert project.printed.strip().endswith(f"python eval.py {run}")


def test_a_run_is_never_overwritten(project):
    before = (project.trained / "last.pt").read_bytes()
    assert "--resume" in refuse("train.py", project.config, f"run_dir={project.trained}")
    assert (project.trained / "last.pt").read_bytes() == before


def test_a_run_stopped_by_ctrl_c_and_resumed_equals_an_uninterrupted_one_to_the_bit(project, tmp_path):
    command = ["train.py", project.config, f"run_dir={tmp_path}"]
    assert train_and_signal(signal.SIGINT, *command, after="epoch   1  step      2/") == 130
    stopped = torch.load(tmp_path / "last.pt", weights_only=True)["progress"]
    assert (stopped["epoch"], 2 <= stopped["step"] < 5) == (0, True)
    succeed(*command, "--resume")
    ours, theirs = weights(tmp_path / "last.pt"), weights(project.trained / "last.pt")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [record["step"] for record in records(tmp_path, "loss/cls")] == list(range(1, 11))
    assert [record["epoch"] for record in records(tmp_path, "val/AP")] == [1, 2]


def test_a_run_resumed_from_its_best_checkpoint_does_not_evaluate_it_again(project, tmp_path):
    run = shutil.copytree(project.trained, tmp_path / "run")
    best = torch.load(run / "best.pt", weights_only=True)["progress"]
    assert (1 <= best["epoch"] <= 2, best["step"]) == (True, 0)
    printed = succeed("train.py", project.config, f"run_dir={run}", "--resume-from", "best")
    assert [line.split()[1] for line in printed.splitlines() if "  val  AP" in line] == ["2"][best["epoch"] - 1 :]
    assert [record["epoch"] for record in records(run, "val/AP")] == [1, 2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_like_one(accumulate, project, tmp_path):
    common = ["train.py", project.config, "optim.epochs=1", f"optim.accumulate={accumulate}"]
    succeed(*common, f"run_dir={tmp_path / 'one'}")
    succeed(*common, f"run_dir={tmp_path / 'two'}", launcher=TWO_PROCESSES)
    for one, two in zip(*(records(tmp_path / name, "loss/cls") for name in ("one", "two")), strict=True):
        for name in ("loss/cls", "loss/box", "loss/dfl"):
            assert two[name] == pytest.approx(one[name], rel=1e-5)
    ours, theirs = weights(tmp_path / "one" / "last.pt"), weights(tmp_path / "two" / "last.pt")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["optim.learning_rate=0.1"], "optim.learning_rate"),
        (["data.train.annotations=nowhere.json"], "nowhere.json"),
        (["model.backbone.weights=nowhere.pth"], "nowhere.pth"),
        (["model.head.quality=dgqp", "model.head.box=dirac"], "model.head.quality"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(words, named, project, tmp_path):
    assert named in refuse("train.py", project.config, f"run_dir={tmp_path / 'run'}", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "named"), [("optim.name=adamw", "optim.name"), ("optim.batch=2", "steps per epoch")]
)
def test_resuming_with_another_optimizer_or_batch_is_refused(change, named, project):
    assert named in refuse("train.py", project.config, f"run_dir={project.trained}", "--resume", change)


def test_resuming_with_fewer_epochs_than_are_done_is_refused(project):
    refuse("train.py", project.config, f"run_dir={project.trained}", "--resume", "optim.epochs=1")


def test_other_changes_are_reported_when_resuming(project, tmp_path):
    run = shutil.copytree(project.trained, tmp_path / "run")
    tree = project.annotations("train")
    tree["annotations"][0]["bbox"][2] += 1
    (tmp_path / "train.json").write_text(json.dumps(tree))
    words = [f"run_dir={run}", f"data.train.annotations={tmp_path / 'train.json'}", "seed=1"]
    printed = succeed("train.py", project.config, *words, "--resume")
    assert "seed: 0 -> 1" in printed
    assert "boxes or classes in data.train.annotations: SHA-256 " in printed
    assert "boxes or classes in data.val.annotations" not in printed


# Starting from a checkpoint


def rename_classes(project, path, split, names):
    """The json of a split with other class names, and ids in reverse so that labels differ too."""
    tree = project.annotations(split)
    for entry in tree["categories"]:
        entry["name"], entry["id"] = names.get(entry["name"], entry["name"]), 100 - entry["id"]
    for entry in tree["annotations"]:
        entry["category_id"] = 100 - entry["category_id"]
    path.write_text(json.dumps(tree))
    return f"data.{split}.annotations={path}"


def test_fine_tuning_keeps_classes_by_name_and_resumes_without_its_initial_weights(project, tmp_path):
    start = tmp_path / "start.pt"
    shutil.copy(project.trained / "last.pt", start)
    data = [rename_classes(project, tmp_path / f"{split}.json", split, {"ring": "donut"}) for split in ("train", "val")]
    common = ["train.py", "configs/finetune.yaml", project.config, *data, f"model.weights={start}"]
    # With a rate of almost 0, the initial weights are still there afterwards.
    common += ["optim.lr=1.0e-12", "optim.weight_decay=0.0", "model.backbone.weights=torchvision", "optim.min_steps=0"]
    common += [f"run_dir={tmp_path / 'run'}"]
    printed = succeed(*common, "optim.epochs=1")
    (line,) = (line for line in printed.splitlines() if line.startswith("weights  "))
    assert str(start) in line
    assert "donut" in line
    before, after = weights(start), weights(tmp_path / "run" / "last.pt")
    torch.testing.assert_close(after["head.cls_out.weight"][[0, 2, 3]], before["head.cls_out.weight"][[3, 1, 0]])
    torch.testing.assert_close(after["head.reg_out.weight"], before["head.reg_out.weight"])
    start.unlink()
    assert "weights  " not in succeed(*common, "optim.epochs=2", "--resume")
    assert [record["epoch"] for record in records(tmp_path / "run", "val/AP")] == [1, 2]


def test_initial_weights_that_do_not_fit_are_refused_with_the_settings_that_would(project, tmp_path):
    common = ["train.py", project.config, f"run_dir={tmp_path / 'run'}"]
    message = refuse(*common, f"model.weights={project.trained}", "model.head.num_convs=2")
    assert message.endswith("model.head.num_convs=1")
    assert not (tmp_path / "run").exists()


def test_two_processes_share_one_image_to_train_on_and_one_box_to_find(project, tmp_path):
    """A class without examples has no metrics; the second process has nothing to evaluate."""
    words = cut_split(project, tmp_path / "train.json", "train", images=1)
    words += cut_split(project, tmp_path / "val.json", "val", images=1, annotations=1)
    run = tmp_path / "run"
    printed = succeed("train.py", project.config, *words, f"run_dir={run}", launcher=TWO_PROCESSES)
    assert "2 epochs x 1 = 2" in printed
    metrics = records(run, "val/AP")[-1]
    assert len([key for key in metrics if key.startswith("val_class/")]) == 1
    assert (run / "best.pt").is_file()
    table = succeed("eval.py", run, launcher=TWO_PROCESSES).splitlines()
    assert sum(line.split()[1:] == ["-", "-"] for line in table) == 3


def cut_split(project, path, split, *, images=100, annotations=10_000):
    """Overrides for a split of its first images, and of the first annotations of those."""
    tree = project.annotations(split)
    tree["images"] = tree["images"][:images]
    kept = {image["id"] for image in tree["images"]}
    tree["annotations"] = [entry for entry in tree["annotations"] if entry["image_id"] in kept][:annotations]
    path.write_text(json.dumps(tree))
    return [f"data.{split}.annotations={path}", f"data.{split}.images={project.shapes / split}"]
