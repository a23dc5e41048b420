"""Which images make which batch: every image as often as it should be, on every process, also after a resume."""

import numpy as np
import pytest

from gfl.data.sampler import EvalSampler, TrainSampler, train_candidates


def images_of(sampler):
    """Indices of the images, (passes, images per pass)."""
    return np.array([[index for _, index in keys] for keys in sampler])


def image_sizes(wide, tall):
    """(I, 2) heights and widths in mixed order."""
    sizes = np.array([(40, 60)] * wide + [(60, 40)] * tall)
    return np.random.default_rng(0).permutation(sizes)


def sampler(wide=20, tall=13, *, epoch=0, **arguments):
    sizes = image_sizes(wide, tall)
    made = TrainSampler(np.arange(len(sizes)), sizes, **{"batch": 4, "seed": 5} | arguments)
    made.epoch = epoch
    return made


@pytest.mark.parametrize(
    ("wide", "tall", "batch", "counts"),
    [
        (20, 12, 4, {1: 32}),
        (20, 13, 4, {1: 30, 2: 3}),  # the last batch is filled up
        (2, 1, 8, {2: 1, 3: 2}),  # fewer images than the batch are repeated evenly
    ],
)
def test_every_image_occurs_once_per_epoch_apart_from_the_filling(wide, tall, batch, counts):
    made = sampler(wide, tall, batch=batch)
    order = images_of(made)
    steps = -(-(wide + tall) // batch)
    assert order.shape == (steps, batch)
    assert made.steps_per_epoch == len(made) == steps
    times, number = np.unique(np.bincount(order.flatten(), minlength=wide + tall), return_counts=True)
    assert dict(zip(times.tolist(), number.tolist(), strict=True)) == counts


@pytest.mark.parametrize("epoch", range(5))
def test_wide_and_tall_images_share_a_batch_only_at_the_end_of_their_groups(epoch):
    heights = image_sizes(22, 15)[images_of(sampler(22, 15, epoch=epoch)), 0]
    pure = (heights == heights[:, :1]).all(axis=1)
    wide = (heights[pure] == 40).all(axis=1).sum()
    assert wide >= 22 // 4
    assert pure.sum() - wide >= 15 // 4
    assert len(pure) == 10
    assert np.abs(np.diff(heights[pure, 0])).astype(bool).sum() > 1  # batches of the two groups are mixed


def test_epochs_and_seeds_differ_and_are_reproducible():
    orders = [images_of(sampler(epoch=epoch, seed=seed)).tolist() for epoch in range(3) for seed in range(3)]
    assert all(orders.count(order) == 1 for order in orders)
    assert images_of(sampler(epoch=1, seed=2)).tolist() == orders[5]
    assert {epoch for keys in sampler(epoch=7) for epoch, _ in keys} == {7}


def test_only_candidates_are_drawn():
    candidates = np.array([3, 4, 8, 15, 16, 19])
    order = images_of(TrainSampler(candidates, image_sizes(10, 10), batch=2))
    assert sorted(order.flatten()) == candidates.tolist()


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 2), (1, 4)])
def test_processes_and_passes_share_the_batches_of_one_process(world, accumulate):
    ranks = [sampler(accumulate=accumulate, rank=rank, world=world) for rank in range(world)]
    passes = np.concatenate([images_of(rank) for rank in ranks], axis=1)
    np.testing.assert_array_equal(passes.reshape(9, 4), images_of(sampler()))
    assert {len(rank) for rank in ranks} == {9 * accumulate}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("first_step", [0, 4, 8, 9])
def test_a_resumed_epoch_has_the_remaining_batches(first_step, accumulate):
    made = sampler(accumulate=accumulate, epoch=2)
    complete = list(made)
    made.first_step = first_step
    assert list(made) == complete[first_step * accumulate :]
    assert len(made) == len(complete) - first_step * accumulate


@pytest.mark.parametrize(("batch", "world", "accumulate", "multiple"), [(4, 3, 1, 3), (4, 1, 3, 3), (6, 2, 2, 4)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(refusal, batch, world, accumulate, multiple):
    message = refusal(sampler, batch=batch, world=world, accumulate=accumulate)
    assert message.startswith("optim.batch: ")
    assert message.endswith(f"multiple of {multiple}")
    assert message.code == "uneven_batch"


def test_images_without_boxes_are_dropped_unless_kept(coco_set):
    data = coco_set([(60, 40)] * 5, [(n, 7, [5, 5, 20, 20]) for n in (0, 1, 3)]).load()
    assert train_candidates(data, keep_empty=False).tolist() == [0, 1, 3]
    assert train_candidates(data, keep_empty=True).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("keep_empty", [False, True])
def test_a_set_without_any_box_is_refused(coco_set, refusal, keep_empty):
    made = coco_set(boxes=[], crowds=[(0, 7, [1, 1, 9, 9])])
    message = refusal(train_candidates, made.load(), keep_empty=keep_empty)
    assert message.startswith(made.annotations)
    assert message.code == "no_boxes"


PADDED = np.array([(96, 64), (64, 96), (96, 64), (64, 64), (96, 64), (64, 96), (96, 64), (64, 96), (64, 64), (96, 64)])


@pytest.mark.parametrize("world", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("batch", [1, 2, 3, 32])
def test_batches_of_evaluation_have_one_padded_size_and_every_image_once(world, batch):
    samplers = [EvalSampler(PADDED, batch=batch, rank=rank, world=world) for rank in range(world)]
    batches = [[index for _, index in keys] for sampler in samplers for keys in sampler]
    assert sorted(index for indices in batches for index in indices) == list(range(len(PADDED)))
    assert all(len(indices) <= batch for indices in batches)
    assert all(len(np.unique(PADDED[indices], axis=0)) == 1 for indices in batches)
    assert {sampler.rounds for sampler in samplers} == {max(map(len, samplers))}


@pytest.mark.parametrize("world", [1, 3])
def test_batches_of_one_image_are_the_images_in_their_order(world):
    for rank in range(world):
        sampler = EvalSampler(PADDED, batch=1, rank=rank, world=world)
        assert list(sampler) == [[(0, index)] for index in range(rank, len(PADDED), world)]


def test_equal_sizes_are_shared_evenly_by_the_processes():
    lengths = [[len(keys) for keys in EvalSampler(PADDED[:1].repeat(8, 0), batch=8, rank=r, world=2)] for r in range(2)]
    assert lengths == [[4], [4]]
