"""Accumulated passes against one batch: losses, gradients, and what they can only approximate."""

import pytest
import torch

from gfl.build import build_criterion, build_detector
from gfl.checkpoint import TrainState
from gfl.config_file import config_from_dict
from gfl.structures import Batch, Targets
from gfl.training.optim import build_optimizer
from gfl.training.step import train_step

IMAGES = 4
SIZE = (96, 128)


def make_config(quality, accumulate):
    tree = {
        "model": {
            "backbone": {"name": "resnet18", "weights": "none"},
            "fpn": {"channels": 64},
            "head": {"channels": 64, "num_convs": 1, "quality": quality},
        },
        "optim": {"batch": IMAGES, "accumulate": accumulate, "clip_norm": 0, "amp": "none"},
    }
    return config_from_dict(tree, "test")


def make_batch(boxes_per_image):
    """Random images of one size; the boxes of each, padded to as many as any has."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (IMAGES, 3, *SIZE), generator=generator, dtype=torch.uint8)
    corners = torch.rand(IMAGES, max(boxes_per_image), 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 12 + torch.rand(corners.shape, generator=generator) * 24], dim=-1)
    valid = torch.arange(max(boxes_per_image)) < torch.tensor(boxes_per_image)[:, None]
    targets = Targets(boxes, torch.randint(2, valid.shape, generator=generator), valid)
    sizes = torch.tensor([SIZE] * IMAGES)
    return Batch(images, sizes, targets, torch.arange(IMAGES), sizes)


def split(batch, passes):
    """The images of `batch` in `passes` equal parts; one without boxes in its images keeps its padded slots."""

    def part(tensors, chosen):
        return [tensor if tensor is None else tensor[chosen] for tensor in tensors]

    for chosen in torch.arange(IMAGES).chunk(passes):
        images, sizes, targets, ids, orig_sizes, *_ = batch
        yield Batch(*part((images, sizes), chosen), Targets(*part(targets, chosen)), *part((ids, orig_sizes), chosen))


def losses_and_gradients(quality, batch, passes, score_logit=None):
    """Of one step with `passes`; the gradients are those that the optimizer used."""
    config = make_config(quality, passes)
    torch.manual_seed(0)
    model = build_detector(config, 2).train()
    if score_logit is not None:
        torch.nn.init.constant_(model.head.cls_out.bias, score_logit)
    state = TrainState(model, build_optimizer(model, config.optim), torch.amp.GradScaler("cpu", enabled=False))
    criterion = build_criterion(config, model.quality, model.box_repr)
    result = train_step(state, model, criterion, split(batch, passes), config.optim, rate=0.0)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return result.losses, gradients


def assert_same_step(one, other):
    for name, value in one[0].items():
        torch.testing.assert_close(other[0][name], value, rtol=1e-5, atol=0, msg=name)
    scale = max(gradient.abs().max() for gradient in one[1].values())
    for name, gradient in one[1].items():
        torch.testing.assert_close(other[1][name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("passes", [2, 4])
@pytest.mark.parametrize("quality", ["none", "centerness_branch"])
def test_passes_equal_one_batch_where_weights_need_no_prediction(quality, passes):
    """Although one image has no box and the others have different numbers."""
    batch = make_batch([9, 0, 1, 3])
    assert_same_step(losses_and_gradients(quality, batch, 1), losses_and_gradients(quality, batch, passes))


@pytest.mark.parametrize("score_logit", [-1.0, -9.0], ids=["usual scores", "weights that sum to less than 1"])
@pytest.mark.parametrize("quality", ["joint", "iou_branch_negatives"])
def test_passes_with_the_same_mean_weight_equal_one_batch(quality, score_logit):
    """The second pass has the first one's images again."""
    batch = make_batch([5, 2, 5, 2])
    targets = Targets(*(t if t is None else t[[0, 1, 0, 1]] for t in batch.targets))
    batch = batch._replace(images=batch.images[[0, 1, 0, 1]], targets=targets)
    assert_same_step(
        losses_and_gradients(quality, batch, 1, score_logit), losses_and_gradients(quality, batch, 2, score_logit)
    )


@pytest.mark.parametrize("score_logit", [None, -9.0], ids=["initial scores", "weights that sum to less than 1"])
def test_joint_passes_differ_from_one_batch_only_by_their_mean_weights(score_logit):
    batch = make_batch([9, 0, 1, 3])
    whole, _ = losses_and_gradients("joint", batch, 1, score_logit)
    parts, _ = losses_and_gradients("joint", batch, 4, score_logit)
    torch.testing.assert_close(parts["cls"], whole["cls"], rtol=1e-5, atol=0)
    for name in ("box", "dfl"):
        torch.testing.assert_close(parts[name], whole[name], rtol=0.02, atol=0)
