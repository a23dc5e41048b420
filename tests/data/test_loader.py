"""Batches: the same for any number of workers and processes, and every image where and as often as it should be."""

import gc
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import _utils

from gfl.config import DataConfig
from gfl.data.bad_images import tell_bad_images
from gfl.data.loader import (
    CocoDataset,
    Sample,
    TrainSampler,
    batches,
    build_eval_loader,
    build_train_loader,
    collate,
    train_candidates,
)

SIZES = [(60, 40), (40, 60), (48, 48), (70, 30), (30, 50)]
BOXES = [(0, 7, [10, 10, 20, 15]), (0, 7, [35, 4, 20, 30]), (1, 7, [5, 5, 25, 40]), (3, 7, [2, 2, 60, 20])]
AUGMENT = ({"name": "RandomBrightnessContrast", "p": 0.8}, {"name": "Affine", "translate_px": [-5, 5], "p": 0.8})


@pytest.fixture
def data(coco_set):
    return coco_set(SIZES, BOXES).load()


def config(**changes):
    return DataConfig(**{"short_side": 64, "long_side": 96, "workers": 0} | changes)


def tensors(batch):
    return [batch.images, batch.image_sizes, *batch.targets, batch.image_ids, batch.orig_sizes]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def images_of(sampler):
    """Indices of the images, (passes, images per pass)."""
    return np.array([[index for _, index in keys] for keys in sampler])


# Samples


def test_training_batches_do_not_depend_on_the_number_of_workers(data):
    runs = []
    for workers in (0, 2):
        sampler = TrainSampler(np.arange(5), data.sizes, batch=2, seed=3)
        settings = config(short_side=(32, 64), augment=AUGMENT, workers=workers)
        loader = build_train_loader(data, settings, sampler, seed=3)
        runs.append([])
        for epoch in range(2):
            sampler.epoch = epoch
            runs[-1] += [tensor for batch in batches(loader) for tensor in tensors(batch)]
    assert len(runs[0]) == 2 * 3 * 7
    assert_same(*runs)


def test_a_sample_is_a_function_of_seed_epoch_and_index(data):
    def dataset(seed):
        return CocoDataset(data, config(short_side=(32, 64), augment=AUGMENT), training=True, seed=seed)

    first, keys = dataset(1), [(epoch, index) for epoch in range(3) for index in range(5)]
    forwards = {key: first[key] for key in keys}
    backwards = {key: dataset(1)[key] for key in reversed(keys)}
    for key in keys:
        assert_same(forwards[key], backwards[key])
    other = dataset(2)
    for epoch, index in keys:
        image = forwards[epoch, index].image
        assert not np.array_equal(image, other[epoch, index].image)
        assert not np.array_equal(image, forwards[(epoch + 1) % 3, index].image)


def test_boxes_of_a_sample_lie_where_their_pixels_are(data):
    dataset = CocoDataset(data, config(short_side=(32, 64), flip=0.5), training=True)
    flipped = set()
    for epoch in range(20):
        image, boxes_xyxy, labels, image_id, orig_size = dataset[epoch, 1]
        rows, columns = (np.flatnonzero((image[..., 0] > 125).any(axis=axis)) for axis in (1, 0))
        assert boxes_xyxy[0] == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=1)
        assert (labels.tolist(), image_id, orig_size) == ([0], 893, (60, 40))
        flipped.add(bool(boxes_xyxy[0, 0] > image.shape[1] - boxes_xyxy[0, 2]))
    assert flipped == {False, True}


def test_short_sides_are_drawn_from_the_whole_range(data):
    dataset = CocoDataset(data, config(short_side=(32, 40), long_side=1000), training=True)
    drawn = [min(dataset[epoch, index].image.shape[:2]) for epoch in range(40) for index in range(5)]
    assert set(drawn) == set(range(32, 41))


def test_evaluation_takes_the_high_end_and_draws_nothing(data):
    settings = config(short_side=(32, 64), long_side=1000, flip=1.0, augment=({"name": "VerticalFlip", "p": 1},))
    image, boxes_xyxy, *_ = CocoDataset(data, settings, training=False)[0, 0]
    assert image.shape == (64, 96, 3)
    assert boxes_xyxy[0].tolist() == pytest.approx([16, 16, 48, 40])
    assert (image[16:40, 16:48, 0] > 125).all()


def test_evaluation_has_its_own_short_side_and_training_keeps_the_range(data):
    settings = config(short_side=(32, 40), long_side=1000, eval_short_side=36)
    evaluation, training = (CocoDataset(data, settings, training=training) for training in (False, True))
    assert {min(evaluation[epoch, index].image.shape[:2]) for epoch in range(3) for index in range(5)} == {36}
    drawn = {min(training[epoch, index].image.shape[:2]) for epoch in range(40) for index in range(5)}
    assert drawn == set(range(32, 41))


def test_a_short_side_of_evaluation_may_lie_outside_training_s_and_ends_at_the_long_side(data):
    settings = config(short_side=48, long_side=1000, eval_short_side=80)
    loader = build_eval_loader(data, settings)
    assert [sorted(batch.image_sizes[0].tolist())[0] for batch in batches(loader)] == [80] * 5
    image = CocoDataset(data, config(short_side=48, long_side=96, eval_short_side=80), training=False)[0, 0].image
    assert image.shape == (64, 96, 3)


def test_the_draws_of_training_do_not_depend_on_evaluation_s_short_side(data):
    runs = [
        CocoDataset(data, config(short_side=(32, 64), eval_short_side=side), training=True, seed=2) for side in (0, 40)
    ]
    for index in range(5):
        assert_same(*[dataset[1, index] for dataset in runs])


# Collation


def sample(height, width, count, image_id=1):
    boxes_xyxy = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    return Sample(np.full((height, width, 3), 255, np.uint8), boxes_xyxy, np.arange(count) + 1, image_id, (9, 8))


def test_a_batch_is_padded_with_zeros_to_multiples_of_32():
    batch = collate([sample(33, 64, 2, image_id=5), sample(20, 70, 0, image_id=2**40)])
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.images.dtype == torch.uint8
    for image, (height, width) in zip(batch.images, [(33, 64), (20, 70)], strict=True):
        assert (image[:, :height, :width] == 255).all()
        assert image.sum(dtype=torch.int64) == 255 * 3 * height * width
    assert batch.image_sizes.tolist() == [[33, 64], [20, 70]]
    assert batch.image_ids.tolist() == [5, 2**40]
    assert batch.orig_sizes.tolist() == [[9, 8], [9, 8]]


def test_an_image_that_fits_exactly_is_not_padded():
    assert collate([sample(64, 32, 1)]).images.shape == (1, 3, 64, 32)


def test_channels_come_first():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    batch = collate([sample(32, 32, 1)._replace(image=image[:, ::-1])])  # a flipped view, as `flip` returns it
    np.testing.assert_array_equal(batch.images[0].numpy(), image[:, ::-1].transpose(2, 0, 1))


def test_empty_slots_are_invalid():
    targets = collate([sample(32, 32, 1), sample(32, 32, 3), sample(32, 32, 0)]).targets
    assert targets.valid.tolist() == [[True, False, False], [True, True, True], [False, False, False]]
    assert targets.labels.tolist() == [[1, 0, 0], [1, 2, 3], [0, 0, 0]]
    assert targets.boxes_xyxy[0].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert targets.boxes_xyxy[1].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert (targets.boxes_xyxy.dtype, targets.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_without_boxes_has_one_invalid_slot(count):
    targets = collate([sample(32, 32, 0)] * count).targets
    assert targets.valid.tolist() == [[False]] * count
    assert targets.boxes_xyxy.shape == (count, 1, 4)


# Training order


def image_sizes(wide, tall):
    """(I, 2) heights and widths in mixed order."""
    sizes = np.array([(40, 60)] * wide + [(60, 40)] * tall)
    return np.random.default_rng(0).permutation(sizes)


def sampler(wide=20, tall=13, **arguments):
    sizes = image_sizes(wide, tall)
    return TrainSampler(np.arange(len(sizes)), sizes, **{"batch": 4, "seed": 5} | arguments)


def test_every_image_occurs_once_per_epoch():
    order = images_of(sampler(20, 12))
    assert order.shape == (8, 4)
    assert sorted(order.flatten()) == list(range(32))


def test_the_last_batch_is_filled_with_other_images_of_the_epoch():
    chosen = sampler(20, 13)
    counts = np.bincount(images_of(chosen).flatten(), minlength=33)
    assert (chosen.steps_per_epoch, len(chosen), counts.sum()) == (9, 9, 36)
    assert sorted(counts)[-4:] == [1, 2, 2, 2]
    assert counts.min() == 1


def test_fewer_images_than_the_batch_are_repeated_evenly():
    order = images_of(sampler(2, 1, batch=8))
    assert order.shape == (1, 8)
    assert sorted(np.bincount(order[0])) == [2, 3, 3]


def test_wide_and_tall_images_meet_only_where_the_groups_are_used_up():
    for epoch in range(5):
        chosen = sampler(22, 15)
        chosen.epoch = epoch
        heights = image_sizes(22, 15)[images_of(chosen), 0]
        pure = (heights == heights[:, :1]).all(axis=1)
        wide = (heights[pure] == 40).all(axis=1).sum()
        assert wide >= 22 // 4
        assert pure.sum() - wide >= 15 // 4
        assert len(pure) == 10


def test_batches_of_the_two_groups_come_mixed():
    heights = image_sizes(20, 20)[images_of(sampler(20, 20)), 0]
    assert np.abs(np.diff(heights[:, 0])).astype(bool).sum() > 1


def test_epochs_and_seeds_differ_and_repeat():
    def order(epoch, seed):
        chosen = sampler(seed=seed)
        chosen.epoch = epoch
        return images_of(chosen).tolist()

    orders = [order(epoch, seed) for epoch in range(3) for seed in range(3)]
    assert all(orders.count(each) == 1 for each in orders)
    assert order(1, 2) == order(1, 2)


def test_keys_carry_the_epoch():
    chosen = sampler()
    chosen.epoch = 7
    assert {epoch for keys in chosen for epoch, _ in keys} == {7}


def test_only_candidates_are_drawn():
    sizes = image_sizes(10, 10)
    candidates = np.array([3, 4, 8, 15, 16, 19])
    order = images_of(TrainSampler(candidates, sizes, batch=2))
    assert sorted(order.flatten()) == candidates.tolist()


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (4, 1), (2, 2)])
def test_processes_share_each_pass_of_one_process(world, accumulate):
    ranks = [sampler(accumulate=accumulate, rank=rank, world=world) for rank in range(world)]
    whole = images_of(sampler(accumulate=accumulate))
    np.testing.assert_array_equal(np.concatenate([images_of(rank) for rank in ranks], axis=1), whole)
    assert {len(rank) for rank in ranks} == {9 * accumulate}


@pytest.mark.parametrize("accumulate", [2, 4])
def test_passes_share_each_batch(accumulate):
    passes = images_of(sampler(accumulate=accumulate))
    assert passes.shape == (9 * accumulate, 4 // accumulate)
    np.testing.assert_array_equal(passes.reshape(9, 4), images_of(sampler()))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("first_step", [0, 4, 8, 9])
def test_a_resumed_epoch_goes_on_with_the_remaining_batches(first_step, accumulate):
    chosen = sampler(accumulate=accumulate)
    chosen.epoch = 2
    whole = list(chosen)
    chosen.first_step = first_step
    assert list(chosen) == whole[first_step * accumulate :]
    assert len(chosen) == len(whole) - first_step * accumulate


@pytest.mark.parametrize(("batch", "world", "accumulate", "multiple"), [(4, 3, 1, 3), (4, 1, 3, 3), (6, 2, 2, 4)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(refusal, batch, world, accumulate, multiple):
    message = refusal(sampler, batch=batch, world=world, accumulate=accumulate)
    assert message.startswith("optim.batch: ")
    assert message.endswith(f"use a multiple of {multiple}")


def test_images_without_boxes_are_dropped_unless_kept(data):
    assert train_candidates(data, keep_empty=False).tolist() == [0, 1, 3]
    assert train_candidates(data, keep_empty=True).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("keep_empty", [False, True])
def test_a_set_without_any_box_is_refused(coco_set, refusal, keep_empty):
    made = coco_set(boxes=[], crowds=[(0, 7, [1, 1, 9, 9])])
    message = refusal(train_candidates, made.load(), keep_empty=keep_empty)
    assert message == f"{made.annotations}: no image has a box to learn"


# Evaluation order


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [1, 2])
def test_evaluation_sees_every_image_exactly_once(data, world, batch):
    seen = []
    for rank in range(world):
        loader = build_eval_loader(data, config(), batch=batch, rank=rank, world=world)
        parts = [each.image_ids.tolist() for each in batches(loader)]
        assert len(loader) == len(parts)
        assert all(len(part) <= batch for part in parts)
        seen += [image_id for part in parts for image_id in part]
    assert sorted(seen) == sorted(data.image_ids.tolist())


def test_evaluation_with_workers_keeps_the_order(data):
    runs = []
    for workers in (0, 2):
        loader = build_eval_loader(data, config(workers=workers), batch=2)
        runs.append([tensor for batch in batches(loader) for tensor in tensors(batch)])
    assert_same(*runs)


# Errors


@pytest.fixture
def damaged(coco_set):
    made = coco_set(SIZES, BOXES)
    data = made.load()
    made.file(3).write_bytes(made.file(3).read_bytes()[:60])
    yield data, made.file(3)
    gc.collect()  # the exception's cycle holds the loader, whose end would else disturb processes that fork later


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_damaged_image_is_named_from_any_process(damaged, refusal, training, workers):
    data, path = damaged
    if training:
        sampler = TrainSampler(np.arange(5), data.sizes, batch=1)
        loader = build_train_loader(data, config(workers=workers), sampler, seed=0)
    else:
        loader = build_eval_loader(data, config(workers=workers), batch=2)
    assert f"image {path} is damaged" in refusal(list, batches(loader))


def test_an_error_ends_the_loaders_processes(damaged, refusal):
    """One that lives on until the program's exit makes torch print a traceback there."""
    before = set(multiprocessing.active_children())
    loader = build_eval_loader(damaged[0], config(workers=2))
    refusal(list, batches(loader))
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("training", [True, False])
def test_a_loader_process_that_is_killed_is_one_line(data, refusal, training, monkeypatch):
    """Whichever is first: a batch whose memory is gone with its process, or one that never comes."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    before, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
    sampler = TrainSampler(np.arange(5), data.sizes, batch=1)
    settings = config(workers=1)
    loader = build_train_loader(data, settings, sampler, seed=0) if training else build_eval_loader(data, settings)
    iterator = batches(loader)
    next(iterator)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    message = refusal(list, iterator)
    assert all(expected in message for expected in ("loader process died", "memory", "data.workers", "--resume"))
    del iterator
    gc.collect()
    assert set(multiprocessing.active_children()) <= before
    assert signal.getsignal(signal.SIGCHLD) == handler


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [RuntimeError, FileNotFoundError])
def test_a_bug_in_a_loader_process_is_no_dead_process(data, workers, kind, monkeypatch):
    def fail(*_):
        raise kind("a bug")

    monkeypatch.setattr(CocoDataset, "__getitem__", fail)
    with pytest.raises(kind, match="a bug"):
        list(batches(build_eval_loader(data, config(workers=workers))))


# Bad images, replaced


def skipping(data, *, workers=0, seed=3, rank=0, world=1, first_step=0, epoch=1):
    """The loader of an epoch that replaces bad images, two per batch."""
    sampler = TrainSampler(np.arange(5), data.sizes, batch=2, seed=seed, rank=rank, world=world)
    sampler.epoch, sampler.first_step = epoch, first_step
    settings = config(short_side=(32, 64), workers=workers, on_bad_image="skip")
    return build_train_loader(data, settings, sampler, seed=seed)


def ids(loader):
    return [batch.image_ids.tolist() for batch in batches(loader)]


def test_bad_images_are_replaced_counted_and_told_once(damaged, capsys):
    data, path = damaged
    loader = skipping(data)
    planned = [[int(data.image_ids[index]) for _, index in keys] for keys in loader.batch_sampler]
    planned, taken, bad = np.array(planned), np.array(ids(loader)), data.image_ids[3]
    assert (planned == bad).any()
    assert not (taken == bad).any()
    assert ((taken == planned) | (planned == bad)).all()
    assert list(loader.dataset.bad) == [path.name]
    assert f"image {path} is damaged" in loader.dataset.bad[path.name]
    ids(loader)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning  image {path} is damaged")


@pytest.mark.parametrize("epoch", range(3))
def test_what_replaces_an_image_depends_on_seed_and_key_only(damaged, epoch):
    data, _ = damaged
    whole = [tensors(batch) for batch in batches(skipping(data, epoch=epoch))]
    with_workers = [tensors(batch) for batch in batches(skipping(data, epoch=epoch, workers=2))]
    resumed = [tensors(batch) for batch in batches(skipping(data, epoch=epoch, first_step=1))]
    for one, other in zip(whole, with_workers, strict=True):
        assert_same(one, other)
    for one, other in zip(whole[1:], resumed, strict=True):
        assert_same(one, other)
    shared = [ids(skipping(data, epoch=epoch, rank=rank, world=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*shared, strict=True)] == [part[5].tolist() for part in whole]


def test_replacements_change_with_epoch_and_seed_and_come_from_the_candidates(damaged):
    data, _ = damaged
    sizes = data.sizes

    def replacement(epoch, seed):
        sampler = TrainSampler(np.array([0, 1, 3]), sizes, batch=3, seed=seed)
        sampler.epoch = epoch
        loader = build_train_loader(data, config(on_bad_image="skip"), sampler, seed=seed)
        (keys,) = loader.batch_sampler
        (batch,) = batches(loader)
        return int(batch.image_ids[[index for _, index in keys].index(3)])

    taken = {(epoch, seed): replacement(epoch, seed) for epoch in range(6) for seed in range(2)}
    assert set(taken.values()) == {int(data.image_ids[0]), int(data.image_ids[1])}
    assert [taken[epoch, 0] for epoch in range(6)] != [taken[epoch, 1] for epoch in range(6)]


def test_a_wrong_size_is_replaced_and_a_folder_of_bad_images_stops(coco_set, refusal):
    made = coco_set(SIZES, BOXES)
    data = made.load()
    made.file(0).write_bytes(made.file(1).read_bytes())
    loader = skipping(data)
    ids(loader)
    assert "the json says 60 x 40" in loader.dataset.bad["000.png"]
    for number in range(5):
        made.file(number).unlink()
    message = refusal(ids, skipping(data))
    assert "nothing but bad images, 5 in a row" in message


def test_an_augmentation_that_fails_is_no_bad_image(data, refusal):
    sampler = TrainSampler(np.arange(5), data.sizes, batch=1)
    augment = ({"name": "RandomCrop", "height": 1000, "width": 1000, "p": 1.0},)
    loader = build_train_loader(data, config(augment=augment, on_bad_image="skip"), sampler, seed=0)
    assert refusal(ids, loader).startswith("data.augment")


def test_evaluation_stops_at_a_bad_image_and_says_why(damaged, refusal):
    data, path = damaged
    message = refusal(ids, build_eval_loader(data, config(on_bad_image="skip")))
    assert f"image {path} is damaged" in message
    assert "data.on_bad_image=skip is for training" in message


def test_the_list_of_bad_images_outlives_the_program(tmp_path, capsys):
    tell_bad_images({}, tmp_path)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
    tell_bad_images({"a.png": "image a.png is damaged"}, tmp_path)
    tell_bad_images({"a.png": "image a.png is damaged", "b.png": "cannot read image b.png"}, tmp_path)
    tell_bad_images({}, tmp_path)
    listed = json.loads((tmp_path / "bad_images.json").read_text())
    assert listed == {"a.png": "image a.png is damaged", "b.png": "cannot read image b.png"}
    assert [len(call.splitlines()) for call in capsys.readouterr().out.split("bad      2")] == [2, 3, 3]
    (tmp_path / "bad_images.json").write_text("[1]")
    tell_bad_images({"a.png": "image a.png is damaged"}, tmp_path)
    assert json.loads((tmp_path / "bad_images.json").read_text()) == {"a.png": "image a.png is damaged"}
