"""The whole network: golden outputs, golden training steps, invariances, and that it learns."""

import numpy as np
import oracles
import pytest
import torch
from dense_detections import select_detections
from reference import convert_golden, deviation_from_golden, golden_weight, read_golden

from gfl.build import build_criterion, build_detector
from gfl.config_file import config_from_dict
from gfl.method.boxes import box_iou
from gfl.model.detector import normalize_images
from gfl.tools.convert.state_dict import mmdet_names, to_mmdet
from gfl.training.optim import build_optimizer


def make_config(*, num_convs=1, optim=None, head=None, evaluation=None, **backbone):
    return config_from_dict(
        {
            "model": {
                "backbone": {"name": "resnet18", "weights": "none"} | backbone,
                "fpn": {"channels": 64},
                "head": {"channels": 64, "num_convs": num_convs} | (head or {}),
            },
            "optim": optim or {},
            "eval": evaluation or {},
        },
        "test",
    )


def random_images(batch, height, width, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def make_detector(**options):
    """With random weights everywhere, so that no output is a constant."""
    torch.manual_seed(0)
    model = build_detector(make_config(**options), 3).eval()
    for parameter in model.head.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def tiny():
    return make_detector()


# --- golden outputs and training steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model_gfl_r18_fpn", "model_gflv2_r50_fpn"])
def test_outputs_equal_the_golden_model(name):
    """The others are in tests/robustness/test_golden_models.py."""
    assert deviation_from_golden(name) < 1e-4


@pytest.fixture(scope="module")
def trajectory():
    return read_golden("trajectory")


@pytest.fixture
def trajectory_model():
    """The golden run's detector and config at its first step."""
    config = make_config(num_convs=4, optim={"lr": 0.005, "momentum": 0.9, "weight_decay": 1e-4})
    model = build_detector(config, 10).train()
    weights = {
        name: golden_weight(name, list(like.shape)) for name, like in to_mmdet(model.state_dict(), config).items()
    }
    weights["bbox_head.gfl_cls.weight"] *= 0.1
    weights["bbox_head.gfl_reg.weight"] *= 0.1
    weights["bbox_head.gfl_cls.bias"].fill_(-4.595119850134589)
    model.load_state_dict(convert_golden(weights, config, list("abcdefghij"))[0])
    return model, config


def test_twenty_sgd_steps_follow_the_golden_trajectory(trajectory, trajectory_model):
    model, config = trajectory_model
    criterion = build_criterion(config, model.quality, model.box_repr)
    optimizer = build_optimizer(model, config.optim)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = [pair for pair in model.named_parameters() if id(pair[1]) in held]
    assert {theirs for pair in trained for theirs in mmdet_names(*pair)} == set(trajectory["trainable"])
    losses = []
    for step in range(20):
        noise = np.random.RandomState(11000 + step).standard_normal((2, 3, 192, 224))
        boxes, labels = ([trajectory[f"s{step}_b{i}_{kind}"] for i in range(2)] for kind in ("boxes", "labels"))
        output = model(torch.from_numpy(noise.astype(np.float32)))
        loss = criterion(output, oracles.pad_targets(boxes, labels), torch.tensor([[192, 224]] * 2))
        optimizer.zero_grad()
        sum(loss.values()).backward()
        optimizer.step()
        losses.append([loss[name].item() for name in ("cls", "box", "dfl")])
    np.testing.assert_allclose(losses[:10], trajectory["losses"][:10], rtol=1e-3)
    np.testing.assert_allclose(losses, trajectory["losses"], rtol=1e-2)
    magnitude = model.head.cls_out.weight.abs().sum().item()
    assert magnitude == pytest.approx(trajectory["final_gfl_cls_weight_sum"].item(), rel=1e-4)


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_images_are_normalised_inside_and_zero_outside():
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, sizes = images.clone(), torch.tensor([[50, 96], [64, 33]])
    normalised = normalize_images(images, sizes)
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    for image, (height, width) in enumerate(sizes.tolist()):
        for channel in range(3):
            expected = (images[image, channel, :height, :width].double() - mean[channel]) / std[channel]
            inside = normalised[image, channel, :height, :width]
            torch.testing.assert_close(inside, expected.float(), rtol=1e-5, atol=1e-5)
        assert (normalised[image, :, height:] == 0).all()
        assert (normalised[image, :, :, width:] == 0).all()
    assert normalised.dtype == torch.float32
    assert images.equal(before)


# --- forward and decode -----------------------------------------------------------------------------------------------


def predict(model, images):
    """Outputs, boxes and the scores by which detections are ranked."""
    with torch.no_grad():
        output = model(images)
        boxes, scores = model.decode(output)
    factor = model.quality.rank_factor(output)
    return output, boxes, scores if factor is None else scores * factor.unsqueeze(-1)


@pytest.mark.parametrize("head", [{}, {"box": "anchor_delta"}, {"box": "gaussian"}, {"box": "dirac"}], ids=str)
def test_boxes_of_some_points_are_those_of_all(head):
    model = make_detector(head=head)
    output, boxes, _ = predict(model, random_images(2, 64, 96))
    image, point = torch.tensor([0, 1, 1]), torch.tensor([100, 7, 50])
    assert model.decode_at(output, image, point).equal(boxes[image, point])


@pytest.mark.parametrize(("decode", "distance"), [("expectation", oracles.expectation), ("peak", oracles.peak)])
def test_boxes_are_distances_in_strides_around_the_points(tiny, decode, distance):
    model = make_detector(evaluation={"decode": decode})
    model.load_state_dict(tiny.state_dict())
    output, boxes, scores = predict(model, random_images(1, 64, 96))
    for p in (0, 50, 96, 119, len(output.grid.points) - 1):
        (x, y), stride = output.grid.points[p].tolist(), output.grid.strides[p].item()
        left, top, right, bottom = (stride * distance(side) for side in output.reg_pred[0, p].tolist())
        assert boxes[0, p].tolist() == pytest.approx([x - left, y - top, x + right, y + bottom], abs=1e-3)
        assert scores[0, p].tolist() == pytest.approx(list(map(oracles.sigmoid, output.cls_logits[0, p].tolist())))


def test_an_image_is_predicted_alone_as_in_its_batch(tiny):
    pixels = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = normalize_images(pixels, torch.tensor([[96, 128], [60, 100], [96, 40]]))
    _, *together = predict(tiny, images)
    for image in range(3):
        for ours, alone in zip(together, predict(tiny, images[image : image + 1])[1:], strict=True):
            torch.testing.assert_close(ours[image], alone[0], rtol=1e-4, atol=1e-4)
    assert (together[1][0] - together[1][1]).abs().max() > 0.01


def test_raw_outputs_are_the_same_in_training_and_evaluation(tiny):
    images = random_images(1, 64, 64)
    with torch.no_grad():
        evaluated, trained = tiny(images), tiny.train()(images)
    tiny.eval()
    assert trained.cls_logits.equal(evaluated.cls_logits)
    assert trained.reg_pred.equal(evaluated.reg_pred)


def test_predictions_are_float32_under_autocast(tiny):
    images = random_images(1, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        _, boxes, scores = predict(tiny, images)
    assert boxes.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(scores, predict(tiny, images)[2], rtol=0, atol=0.05)


def test_a_branch_is_not_in_the_scores_that_the_threshold_applies_to():
    model = make_detector(head={"quality": "centerness_branch", "box": "gaussian"})
    output, _, ranked = predict(model, random_images(2, 64, 96))
    scores = model.decode(output)[1]
    assert output.quality_logits.shape == output.cls_logits.shape[:2]
    assert scores.equal(output.cls_logits.sigmoid())
    torch.testing.assert_close(ranked, scores * output.quality_logits.sigmoid().unsqueeze(-1))


# --- learning ---------------------------------------------------------------------------------------------------------


def painted_images():
    """Four 64 x 64 images with a coloured box or two on a dark ground; the class is the colour."""
    boxes = [[[6, 8, 38, 44]], [[20, 24, 60, 58]], [[4, 30, 30, 60], [34, 4, 60, 28]], [[10, 4, 56, 30]]]
    labels = [[0], [1], [1, 2], [2]]
    images = torch.randint(0, 60, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for image, image_boxes in enumerate(boxes):
        for (x1, y1, x2, y2), label in zip(image_boxes, labels[image], strict=True):
            images[image, :, y1:y2, x1:x2] = 0
            images[image, label, y1:y2, x1:x2] = 250
    return images, boxes, labels


def test_a_tiny_detector_learns_four_images_by_heart():
    torch.manual_seed(0)
    config = make_config(norm_eval=False, frozen_stages=-1, optim={"name": "adamw", "lr": 2e-3, "weight_decay": 0.01})
    pixels, boxes, labels = painted_images()
    sizes = torch.tensor([[64, 64]] * 4)
    images, targets = normalize_images(pixels, sizes), oracles.pad_targets(boxes, labels)
    model = build_detector(config, 3).train()
    criterion = build_criterion(config, model.quality, model.box_repr)
    optimizer = build_optimizer(model, config.optim)
    history = []
    for _ in range(50):
        loss = sum(criterion(model(images), targets, sizes).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0]

    with torch.no_grad():
        output = model.eval()(images)
    found = select_detections(*model.decode(output), output.grid.level_sizes, score_thresh=0.5)
    for image, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        real = found.labels[image] >= 0
        assert sorted(found.labels[image, real].tolist()) == image_labels
        for box, label in zip(image_boxes, image_labels, strict=True):
            same = found.boxes_xyxy[image][found.labels[image] == label]
            assert box_iou(same[0], torch.tensor(box).float()) > 0.7
