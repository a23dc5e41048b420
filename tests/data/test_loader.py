"""Batches: the same for any number of workers and processes; bad images are named or replaced."""

import gc
import multiprocessing

import numpy as np
import pytest
import torch

from gfl.config import Config, DataConfig, EvalConfig, SplitConfig
from gfl.data.dataset import CocoDataset
from gfl.data.loader import batches, build_eval_loader, build_train_loader, load_training_data, worker_died
from gfl.data.sampler import TrainSampler

SIZES = [(60, 40), (40, 60), (48, 48), (70, 30), (30, 50)]
BOXES = [(0, 7, [10, 10, 20, 15]), (0, 7, [35, 4, 20, 30]), (1, 7, [5, 5, 25, 40]), (3, 7, [2, 2, 60, 20])]
AUGMENT = ({"name": "RandomBrightnessContrast", "p": 0.8}, {"name": "Affine", "translate_px": [-5, 5], "p": 0.8})


@pytest.fixture
def data(coco_set):
    return coco_set(SIZES, BOXES).load()


@pytest.fixture
def damaged(coco_set):
    """A split whose image 3 is damaged, and that file."""
    made = coco_set(SIZES, BOXES)
    data = made.load()
    made.file(3).write_bytes(made.file(3).read_bytes()[:60])
    yield data, made.file(3)
    gc.collect()  # the exception's cycle holds the loader, whose end would disturb processes that fork later


def config(**changes):
    return DataConfig(**{"short_side": (32, 64), "long_side": 96, "workers": 0} | changes)


def train_loader(data, *, seed=3, first_step=0, epoch=1, candidates=range(5), sharding=(), **changes):
    sampler = TrainSampler(np.array(candidates), data.sizes, seed=seed, **{"batch": 2} | dict(sharding))
    sampler.epoch, sampler.first_step = epoch, first_step
    return build_train_loader(data, config(**changes), sampler, seed=seed)


def tensors(loader):
    return [
        tensor
        for loaded in batches(loader)
        for batch in (loaded, *loaded.views)
        for tensor in (batch.images, batch.image_sizes, *batch.targets[:3], batch.image_ids, batch.orig_sizes)
    ]


def ids(loader):
    return [batch.image_ids.tolist() for batch in batches(loader)]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_do_not_depend_on_the_number_of_workers(data):
    for epoch in range(2):
        runs = [tensors(train_loader(data, epoch=epoch, augment=AUGMENT, workers=workers)) for workers in (0, 2)]
        assert len(runs[0]) == 3 * 7
        assert_same(*runs)
    views = EvalConfig(batch=2, tta_scales=(1.0, 0.5), tta_flip=True)
    runs = [tensors(build_eval_loader(data, config(workers=workers), views)) for workers in (0, 2)]
    assert len(runs[0]) == 4 * 7 * len(build_eval_loader(data, config(), views))
    assert_same(*runs)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 2])
def test_evaluation_has_every_image_exactly_once(data, world, batch):
    found = []
    for rank in range(world):
        loader = build_eval_loader(data, config(), EvalConfig(batch=batch), rank=rank, world=world)
        parts = ids(loader)
        assert len(loader) == len(parts)
        assert all(len(part) <= batch for part in parts)
        found += [image_id for part in parts for image_id in part]
    assert sorted(found) == sorted(data.image_ids.tolist())


def test_training_data_are_both_splits_with_the_classes_of_training(coco_set, refusal):
    train = coco_set(SIZES, BOXES, categories={7: "disc", 9: "ring"})
    val = coco_set(SIZES[:2], [(0, 1, [5, 5, 9, 9])], categories={1: "ring", 2: "disc"}, name="val")
    splits = {"train": SplitConfig(train.annotations, train.images), "val": SplitConfig(val.annotations, val.images)}
    settings = Config(data=config(**splits))
    data = load_training_data(settings, torch.device("cpu"))
    assert data.val.class_names == data.train.class_names == ("disc", "ring")
    assert data.val.labels.tolist() == [1]
    assert sorted(data.sampler.candidates) == [0, 1, 3]
    assert ids(data.val_loader) == [[900], [893]]
    assert {len(batch) for batch in ids(data.train_loader)} == {settings.optim.batch}
    del val.tree["annotations"]
    assert val.save().annotations in refusal(load_training_data, settings, torch.device("cpu"))


@pytest.mark.parametrize(
    ("error", "died"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), False),
        (ConnectionResetError("reset by peer"), True),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0."), False),
        (ValueError("a bug"), False),
    ],
)
def test_dead_workers_are_distinguished_from_errors_in_workers(error, died):
    assert worker_died(error) is died


# Bad images


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_damaged_image_is_named_from_any_process(damaged, refusal, training, workers):
    data, path = damaged
    processes = set(multiprocessing.active_children())
    loader = train_loader(data, workers=workers) if training else build_eval_loader(data, config(workers=workers))
    message = refusal(list, batches(loader))
    assert str(path) in message
    assert message.code == "truncated"
    assert ("data.on_bad_image=skip" in message) == training
    assert set(multiprocessing.active_children()) <= processes  # or torch prints a traceback at the end of the program


def test_evaluation_stops_at_a_bad_image_even_with_skip(damaged, refusal):
    data, path = damaged
    message = refusal(ids, build_eval_loader(data, config(on_bad_image="skip")))
    assert str(path) in message
    assert "data.on_bad_image" in message


def test_bad_images_are_replaced_collected_and_reported_once(damaged, capsys):
    data, path = damaged
    loader = train_loader(data, on_bad_image="skip")
    planned = np.array([[int(data.image_ids[index]) for _, index in keys] for keys in loader.batch_sampler])
    found, bad = np.array(ids(loader)), data.image_ids[3]
    assert (planned == bad).any()
    assert not (found == bad).any()
    assert ((found == planned) | (planned == bad)).all()
    assert list(loader.dataset.bad) == [path.name]
    assert str(path) in loader.dataset.bad[path.name]
    ids(loader)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning")
    assert str(path) in line


@pytest.mark.parametrize("epoch", range(3))
def test_replacements_depend_on_seed_and_key_only(damaged, epoch):
    data, _ = damaged
    expected = tensors(train_loader(data, epoch=epoch, on_bad_image="skip"))
    assert_same(expected, tensors(train_loader(data, epoch=epoch, on_bad_image="skip", workers=2)))
    assert_same(expected[7:], tensors(train_loader(data, epoch=epoch, on_bad_image="skip", first_step=1)))
    shared = [
        ids(train_loader(data, epoch=epoch, on_bad_image="skip", sharding={"rank": rank, "world": 2}))
        for rank in range(2)
    ]
    joined = [first + second for first, second in zip(*shared, strict=True)]
    assert joined == [image_ids.tolist() for image_ids in expected[5::7]]


def test_replacements_change_with_epoch_and_seed_and_are_candidates(damaged):
    data, _ = damaged

    def replacement(epoch, seed):
        loader = train_loader(
            data, sharding={"batch": 3}, seed=seed, epoch=epoch, candidates=[0, 1, 3], on_bad_image="skip"
        )
        (keys,), (image_ids,) = loader.batch_sampler, ids(loader)
        return image_ids[[index for _, index in keys].index(3)]

    first, second = ([replacement(epoch, seed) for epoch in range(6)] for seed in range(2))
    assert {*first, *second} == {int(data.image_ids[0]), int(data.image_ids[1])}
    assert first != second


def test_wrong_sizes_are_replaced_and_only_bad_images_are_an_error(coco_set, refusal):
    made = coco_set(SIZES, BOXES)
    data = made.load()
    made.file(0).write_bytes(made.file(1).read_bytes())
    loader = train_loader(data, on_bad_image="skip")
    ids(loader)
    assert "60 x 40" in loader.dataset.bad["000.png"]
    for number in range(5):
        made.file(number).unlink()
    assert refusal(ids, train_loader(data, on_bad_image="skip")).code == "only_bad_images"


def test_an_augmentation_that_fails_is_no_bad_image(data, refusal):
    augment = ({"name": "RandomCrop", "height": 1000, "width": 1000, "p": 1.0},)
    assert refusal(ids, train_loader(data, augment=augment, on_bad_image="skip")).startswith("data.augment")


def test_a_bug_is_no_dead_process(data, monkeypatch):
    def fail(*_):
        raise FileNotFoundError("a bug")

    monkeypatch.setattr(CocoDataset, "__getitem__", fail)
    with pytest.raises(FileNotFoundError, match="a bug"):
        ids(build_eval_loader(data, config()))
