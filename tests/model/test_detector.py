"""The whole detector: golden outputs, golden training steps, invariances, and that it learns."""

import json
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from reference import golden_weight

from gfl.build import BOX_REPRESENTATIONS, QUALITIES, build_criterion, build_detector
from gfl.common.errors import UserError
from gfl.config import config_from_dict
from gfl.method.boxes import box_iou
from gfl.method.postprocess import select_detections
from gfl.model.detector import normalize_images
from gfl.tools.convert.architecture import parse_foreign
from gfl.tools.convert.state_dict import convert_detector, mmdet_names, to_mmdet
from gfl.training.optim import build_optimizer

GOLDEN = Path(__file__).parent / "golden"


def make_config(*, num_convs=1, optim=None, points=None, fpn=None, head=None, evaluation=None, **backbone):
    return config_from_dict(
        {
            "model": {
                "backbone": {"name": "resnet18", "weights": "none"} | backbone,
                "fpn": {"channels": 64} | (fpn or {}),
                "head": {"channels": 64, "num_convs": num_convs} | (head or {}),
                "points": points or {},
            },
            "optim": optim or {},
            "eval": evaluation or {},
        },
        "test",
    )


def random_images(batch, height, width, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny():
    """A detector with random weights everywhere, so that no output is a constant."""
    torch.manual_seed(0)
    model = build_detector(make_config(), 3).eval()
    for parameter in model.head.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


# --- golden outputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("model_*.json")))
def test_outputs_equal_the_golden_model(name):
    shapes = json.loads((GOLDEN / f"{name}.json").read_text())
    weights = {tensor: golden_weight(tensor, shape) for tensor, shape in shapes.items()}
    state, config, _ = convert_detector(parse_foreign({"state_dict": weights}))
    with torch.device("meta"):  # no random weights only to replace them
        model = build_detector(config, 80).eval()
    model.load_state_dict(state, assign=True)
    with np.load(GOLDEN / f"{name}.npz") as golden:
        noise = np.random.RandomState(int(golden["image_seed"])).standard_normal((1, 3, 128, 160))
        with torch.no_grad():
            output = model(torch.from_numpy(noise.astype(np.float32)))
            joint = config.model.head.quality == "joint"
            cls = output.cls_logits if joint else model.quality.scores(output)  # of gflv2 the product's probability
        for kind, ours in (("cls", cls), ("reg", output.reg_pred.flatten(2))):
            for level, ours_at_level in enumerate(ours.split(output.grid.level_sizes, dim=1)):
                theirs = torch.from_numpy(golden[f"{kind}_{level}"]).flatten(2).mT
                assert (ours_at_level - theirs).abs().max() < 1e-4 * theirs.abs().max()


# --- golden training steps --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory():
    with np.load(GOLDEN / "trajectory.npz") as file:
        return dict(file)


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
    model.load_state_dict(convert_detector(parse_foreign({"state_dict": weights}), config, list("abcdefghij")).state)
    return model, config


def test_trained_parameters_are_the_golden_ones(trajectory, trajectory_model):
    model, config = trajectory_model
    held = {
        id(parameter) for group in build_optimizer(model, config.optim).param_groups for parameter in group["params"]
    }
    trained = [pair for pair in model.named_parameters() if id(pair[1]) in held]
    assert {theirs for pair in trained for theirs in mmdet_names(*pair)} == set(trajectory["trainable"].tolist())


def test_twenty_sgd_steps_follow_the_golden_trajectory(trajectory, trajectory_model):
    model, config = trajectory_model
    criterion = build_criterion(config, model.quality, model.box_repr)
    optimizer = build_optimizer(model, config.optim)
    losses = []
    for step in range(20):
        noise = np.random.RandomState(11000 + step).standard_normal((2, 3, 192, 224))
        truth = [
            [torch.from_numpy(trajectory[f"s{step}_b{image}_{kind}"]) for image in range(2)]
            for kind in ("boxes", "labels")
        ]
        output = model(torch.from_numpy(noise.astype(np.float32)))
        loss = criterion(output, oracles.pad_targets(*truth), torch.tensor([[192, 224]] * 2))
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
    sizes = torch.tensor([[50, 96], [64, 33]])
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


def test_normalising_does_not_write_into_the_images():
    images = torch.full((1, 3, 32, 32), 7, dtype=torch.uint8)
    normalize_images(images, torch.tensor([[20, 20]]))
    assert (images == 7).all()


# --- forward and predict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 160), (224, 352), (32, 32)])
def test_shapes(tiny, size):
    num_points = sum(height * width for height, width in oracles.feature_sizes(*size))
    with torch.no_grad():
        output = tiny(random_images(2, *size))
        boxes, scores = tiny.decode(output)
    assert output.cls_logits.shape == (2, num_points, 3)
    assert output.reg_pred.shape == (2, num_points, 4, 17)
    assert boxes.shape == (2, num_points, 4)
    assert scores.shape == (2, num_points, 3)


def test_predictions_are_expected_distances_in_strides_around_the_points(tiny):
    images = random_images(1, 64, 96)
    with torch.no_grad():
        output = tiny(images)
        boxes, scores = tiny.predict(images)
    for p in (0, 50, 96, 119, len(output.grid.points) - 1):
        (x, y), stride = output.grid.points[p].tolist(), output.grid.strides[p].item()
        left, top, right, bottom = (stride * oracles.expectation(side) for side in output.reg_pred[0, p].tolist())
        assert boxes[0, p].tolist() == pytest.approx([x - left, y - top, x + right, y + bottom], abs=1e-3)
        assert scores[0, p].tolist() == pytest.approx(list(map(oracles.sigmoid, output.cls_logits[0, p].tolist())))


def test_an_image_is_predicted_alone_as_in_its_batch(tiny):
    pixels = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = normalize_images(pixels, torch.tensor([[96, 128], [60, 100], [96, 40]]))
    with torch.no_grad():
        together = tiny.predict(images)
        for image in range(3):
            for ours, alone in zip(together, tiny.predict(images[image : image + 1]), strict=True):
                torch.testing.assert_close(ours[image], alone[0], rtol=1e-4, atol=1e-4)
    assert (together[1][0] - together[1][1]).abs().max() > 0.01


def test_raw_outputs_are_the_same_in_training_and_evaluation(tiny):
    images = random_images(1, 64, 64)
    with torch.no_grad():
        evaluated = tiny(images)
        trained = tiny.train()(images)
    tiny.eval()
    assert trained.cls_logits.equal(evaluated.cls_logits)
    assert trained.reg_pred.equal(evaluated.reg_pred)


def test_predictions_are_float32_under_autocast(tiny):
    images = random_images(1, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        boxes, scores = tiny.predict(images)
    with torch.no_grad():
        _, scores_float32 = tiny.predict(images)
    assert boxes.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(scores, scores_float32, rtol=0, atol=0.05)


@pytest.fixture(scope="module")
def branched():
    """As `tiny`, with a quality branch, normal distributions, and all that FCOS has."""
    torch.manual_seed(0)
    head = {"quality": "centerness_branch", "box": "gaussian", "conv_bias": True}
    model = build_detector(make_config(head=head, fpn={"extra_relu": True}), 3).eval()
    for parameter in model.head.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def test_a_branch_multiplies_predictions_and_not_what_the_threshold_sees(branched):
    images = random_images(2, 64, 96)
    with torch.no_grad():
        output = branched(images)
        boxes, scores = branched.predict(images)
        plain_boxes, plain_scores = branched.decode(output)
    assert output.quality_logits.shape == output.cls_logits.shape[:2]
    assert plain_scores.equal(output.cls_logits.sigmoid())
    torch.testing.assert_close(scores, plain_scores * output.quality_logits.sigmoid().unsqueeze(-1))
    assert boxes.equal(plain_boxes)
    assert (scores < plain_scores).all()


def test_a_detection_is_kept_by_its_class_score_and_ranked_by_the_product():
    boxes = torch.tensor([[[0.0, 0, 20, 20], [100, 0, 120, 20], [200, 0, 220, 20], [1, 0, 21, 20]]])
    scores = torch.tensor([[[0.06], [0.9], [0.04], [0.5]]])
    factor = torch.tensor([[0.5, 0.01, 1.0, 0.9]])
    found = select_detections(boxes, scores, (4,), factor=factor)
    # Of the overlapping first and last the last survives; the second stays, although its product is below 0.05.
    assert found.point_index.tolist() == [[3, 1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.45, 0.009]]))


def test_decode_by_the_peak_moves_boxes_and_nothing_else(tiny):
    torch.manual_seed(0)
    model = build_detector(make_config(evaluation={"decode": "peak"}), 3).eval()
    model.load_state_dict(tiny.state_dict())
    images = random_images(1, 64, 96)
    with torch.no_grad():
        output = model(images)
        boxes, scores = model.predict(images)
        expected_boxes, expected_scores = tiny.predict(images)
    assert scores.equal(expected_scores)
    assert not boxes.equal(expected_boxes)
    for p in (0, 50, 96, 119, len(output.grid.points) - 1):
        (x, y), stride = output.grid.points[p].tolist(), output.grid.strides[p].item()
        left, top, right, bottom = (stride * oracles.peak(side) for side in output.reg_pred[0, p].tolist())
        assert boxes[0, p].tolist() == pytest.approx([x - left, y - top, x + right, y + bottom], abs=1e-3)


# --- building ---------------------------------------------------------------------------------------------------------


def test_pretrained_weights_are_loaded_unless_a_checkpoint_follows():
    config = make_config(weights="absent.pth")
    with pytest.raises(UserError, match=r"no file absent\.pth"):
        build_detector(config, 3)
    build_detector(config, 3)


def test_levels_and_offset_come_from_the_config():
    config = make_config(points={"strides": [8, 16, 32, 64], "offset": 0.5})
    with torch.no_grad():
        grid = build_detector(config, 3)(random_images(1, 64, 64)).grid
    assert grid.level_sizes == (64, 16, 4, 1)
    assert grid.points[0].tolist() == [4, 4]


@pytest.mark.parametrize(
    ("quality", "box"), [*[(name, "general") for name in QUALITIES], *[("none", name) for name in BOX_REPRESENTATIONS]]
)
def test_every_row_and_representation_gets_the_outputs_it_wants(quality, box):
    with torch.device("meta"):
        model = build_detector(make_config(head={"quality": quality, "box": box, "reg_max": 7}), 3)
        output = model(torch.zeros(1, 3, 64, 64))
    outputs_per_side = {"dirac": 1, "anchor_delta": 1, "gaussian": 2, "general": 8}[box]
    assert output.reg_pred.shape[2:] == (4, outputs_per_side)
    assert (model.head.quality_out is not None) == quality.endswith("_branch")
    assert (output.quality_logits is not None) == (quality.endswith("_branch") or quality == "dgqp")


@pytest.mark.parametrize("box", ["dirac", "gaussian", "anchor_delta"])
def test_what_needs_distributions_is_refused_without_them(refusal, box):
    message = refusal(build_detector, make_config(head={"quality": "dgqp", "box": box}), 3)
    assert "model.head.quality: dgqp" in message
    assert f"box: {box} predicts none" in message
    message = refusal(build_detector, make_config(head={"box": box}, evaluation={"decode": "peak"}), 3)
    assert "eval.decode: peak" in message
    assert f"box: {box} predicts none" in message


@pytest.mark.parametrize("wanted", [False, True])
def test_conv_bias_and_extra_relu_come_from_the_config(wanted):
    with torch.device("meta"):
        model = build_detector(make_config(head={"conv_bias": wanted}, fpn={"extra_relu": wanted}), 3)
    assert (model.head.cls_tower[0].bias is not None) == wanted
    assert (model.head.reg_tower[0].bias is not None) == wanted
    assert model.fpn.extra_relu == wanted


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
