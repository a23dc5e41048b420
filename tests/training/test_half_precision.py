"""Half precision: how far losses and gradients are from float32's, and what must not be computed in it."""

import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gfl.config import OptimConfig
from gfl.method.assign import assign_atss
from gfl.method.box_representation import GeneralBox
from gfl.method.criterion import Criterion
from gfl.method.quality import DistributionGuidedQuality, JointQuality
from gfl.model.head import GFLHead
from gfl.structures import HeadOutput
from gfl.training.optim import build_optimizer

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"]
)
QUALITIES = pytest.mark.parametrize("quality", [JointQuality, DistributionGuidedQuality], ids=["joint", "dgqp"])
CANVAS, SIZES = (128, 160), [(128, 160), (100, 130)]
GRADIENT_SCALE = 1024  # of the loss, as a gradient scaler's, so that gradients in fp16 do not vanish

PARTS = {  # of the gradient
    "d all": ("head", "quality"),
    "d cls": "head.cls",
    "d reg": ("head.reg", "head.scales"),
    "d predictor": "quality",
}
# Of the mean over three seeds: three times the mean measured over twelve (Xeon, torch 2.15), of the joint row or of
# GFLv2's, whichever was further off. Rounding logits alone costs the gradient 0.2 %; the rest are ReLUs that switch and
# predicted sides that cross their target's, where GIoU's gradient jumps. One such point can be 40 % of a part.
BOUNDS = {
    torch.bfloat16: dict(zip(("cls", "box", "dfl", *PARTS), (1e-2, 5e-4, 5e-4, 0.2, 0.1, 0.3, 0.2), strict=True)),
    torch.float16: dict(zip(("cls", "box", "dfl", *PARTS), (1e-3, 6e-5, 1e-4, 0.05, 0.03, 0.1, 5e-3), strict=True)),
}


class Dense(nn.Module):
    """What follows the pyramid: head, quality and losses."""

    def __init__(self, quality):
        super().__init__()
        self.head = GFLHead(5, [0.0] * 17, oracles.LAYOUT, in_channels=64, channels=64, num_convs=2)
        self.quality = quality()
        self.criterion = Criterion(assign_atss, self.quality, GeneralBox())

    def forward(self, pyramid, targets, sizes):
        return self.criterion(self.quality(self.head(pyramid)), targets, sizes)


def random_dense(quality, seed):
    """With logits of deviation 1 to 2, as a trained head has, where the initial ones are nearly constant."""
    torch.manual_seed(seed)
    dense = Dense(quality)
    for out in (dense.head.cls_out, dense.head.reg_out):
        nn.init.normal_(out.weight, std=0.08)
        nn.init.normal_(out.bias, std=0.5)
    dense.head.cls_out.bias.data -= 2
    for layer in (module for module in dense.quality.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(layer.weight, std=0.5)
    return dense


def random_batch(seed):
    """Pyramid, targets and sizes of two images."""
    generator = torch.Generator().manual_seed(seed)
    pyramid = [torch.randn(2, 64, *size, generator=generator) for size in oracles.feature_sizes(*CANVAS)]
    boxes = [oracles.random_boxes(count, *size, generator) for count, size in zip((6, 2), SIZES, strict=True)]
    labels = [torch.randint(5, (len(image_boxes),), generator=generator) for image_boxes in boxes]
    return pyramid, oracles.pad_targets(boxes, labels), torch.tensor(SIZES)


def losses_and_gradients(dense, batch, dtype):
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses = dense(*batch)
    gradients = torch.autograd.grad(sum(losses.values()) * GRADIENT_SCALE, list(dense.parameters()))
    return losses, [gradient / GRADIENT_SCALE for gradient in gradients]


def errors(quality, dtype, seed):
    """Relative error of each loss, of the whole gradient, and of its parts in the two branches and the predictor."""
    dense, batch = random_dense(quality, seed), random_batch(seed)
    losses, gradients = losses_and_gradients(dense, batch, torch.float32)
    losses_half, gradients_half = losses_and_gradients(dense, batch, dtype)
    assert all(loss.dtype == torch.float32 for loss in losses_half.values())
    found = {name: (abs(losses_half[name] - losses[name]) / losses[name]).item() for name in losses}
    names = [name for name, _ in dense.named_parameters()]
    for part, prefix in PARTS.items():
        chosen = [index for index, name in enumerate(names) if name.startswith(prefix)]
        norm = sum(gradients[index].square().sum() for index in chosen)
        difference = sum((gradients_half[index] - gradients[index]).square().sum() for index in chosen)
        found |= {part: (difference / norm).sqrt().item()} if chosen else {}
    return found


@HALVES
@QUALITIES
def test_losses_and_gradients_are_near_those_of_float32(quality, dtype):
    seeds = [errors(quality, dtype, seed) for seed in range(3)]
    mean = {part: sum(error[part] for error in seeds) / 3 for part in seeds[0]}
    print(f"\n{quality.__name__} {dtype}", *(f"{part} {error:.1e}" for part, error in mean.items()), sep="  ")
    assert {part: error for part, error in mean.items() if not error <= BOUNDS[dtype][part]} == {}


# --- what stays in float32 --------------------------------------------------------------------------------------------


def random_output(dtype):
    """Outputs of two images in `dtype`, with quality logits."""
    generator = torch.Generator().manual_seed(0)
    grid = oracles.grid_of(*CANVAS)
    shapes = [(2, len(grid.points), 5), (2, len(grid.points), 4, 17), (2, len(grid.points))]
    cls_logits, reg_pred, quality_logits = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return HeadOutput(cls_logits, reg_pred, quality_logits, grid)


def in_float32(output):
    return HeadOutput(*(column.float() for column in output[:3]), output.grid)


def float32_results(quality, output, batch):
    """Everything that is always float32."""
    box_repr, quality = GeneralBox(), quality(beta=2.0)
    targets = torch.rand(output.reg_pred.shape[:-1], generator=torch.Generator().manual_seed(1)) * 15
    return {
        "probabilities": box_repr.probabilities(output.reg_pred),
        "distances": box_repr.distances(output.reg_pred),
        "dfl of sides": box_repr.loss(output.reg_pred, targets),
        "logits": quality.logits(output).float(),  # of the joint row they are the head's
        "scores": quality.scores(output),
        **Criterion(assign_atss, quality, box_repr)(output, *batch[1:]),
    }


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@DTYPES
@QUALITIES
def test_losses_distances_and_scores_are_float32_and_exact(quality, dtype, autocast):
    """The very numbers of float32 for the same rounded outputs, inside an autocast region and outside."""
    output, batch = random_output(dtype), random_batch(0)
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype, enabled=autocast):
        found = float32_results(quality, output, batch)
    expected = float32_results(quality, in_float32(output), batch)
    for name, result in found.items():
        assert result.dtype == torch.float32, name
        torch.testing.assert_close(
            result, expected[name], rtol=1e-6, atol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@HALVES
def test_the_predictor_reads_distributions_in_float32(dtype):
    quality, output, dtypes = DistributionGuidedQuality(), random_output(dtype), []
    quality.hidden.register_forward_pre_hook(lambda _module, inputs: dtypes.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype):
        quality(output)
    assert dtypes == [torch.float32]


@HALVES
def test_group_norm_has_the_statistics_of_float32(dtype):
    """Far from 0, a mean or deviation in half precision would be off by more than the deviation itself."""
    features = (60 + 2 * torch.randn(2, 64, 40, 50, generator=torch.Generator().manual_seed(0))).to(dtype)
    norm = nn.GroupNorm(32, 64)
    nn.init.normal_(norm.weight)
    expected = F.group_norm(features.double(), 32, norm.weight.double(), norm.bias.double())
    with torch.autocast("cpu", dtype), torch.no_grad():
        found = norm(features)
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)


# --- extremes ---------------------------------------------------------------------------------------------------------


@DTYPES
@QUALITIES
def test_extreme_logits_give_finite_losses_and_gradients(quality, dtype):
    """Every logit is -30 or 30."""
    signs = random_output(torch.float32)
    leaves = [(30 * column.sign()).to(dtype).requires_grad_() for column in signs[:3]]
    criterion = Criterion(assign_atss, quality(), GeneralBox())
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses = criterion(HeadOutput(*leaves, signs.grid), *random_batch(0)[1:])
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    gradients = torch.autograd.grad(sum(losses.values()), leaves, allow_unused=True)
    for gradient in gradients if quality is DistributionGuidedQuality else gradients[:2]:
        assert gradient.isfinite().all()
        assert (gradient != 0).any()


@DTYPES
def test_the_predictor_is_finite_for_extreme_distributions(dtype):
    quality, reg_pred = DistributionGuidedQuality(), (30 * random_output(torch.float32).reg_pred.sign()).to(dtype)
    output = random_output(dtype)._replace(reg_pred=reg_pred.requires_grad_())
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = quality.logits(quality(output))
    assert logits.isfinite().all()
    for gradient in torch.autograd.grad(logits.sum(), [reg_pred, *quality.parameters()]):
        assert gradient.isfinite().all()


# --- training in fp16 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_first_step_that_overflows_is_skipped_and_training_continues(name):
    dense, batch = random_dense(DistributionGuidedQuality, 0), random_batch(0)
    optimizer = build_optimizer(dense, OptimConfig(name=name, lr=1e-3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50)
    before = {key: tensor.clone() for key, tensor in dense.state_dict().items()}
    history = []
    for step in range(4):
        with torch.autocast("cpu", torch.float16):
            loss = sum(dense(*batch).values())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        overflowed = not all(parameter.grad.isfinite().all() for parameter in dense.parameters())
        assert overflowed == (step == 0)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 2.0**10
        assert all(tensor.isfinite().all() for tensor in dense.state_dict().values())
        states = [value for state in optimizer.state.values() for value in state.values()]
        assert all(torch.as_tensor(value).isfinite().all() for value in states if value is not None)
        changed = any(not tensor.equal(before[key]) for key, tensor in dense.state_dict().items())
        assert changed == (step > 0)
        history.append(loss.item())
    assert history[1] == history[0]
    assert history[-1] < history[0]
