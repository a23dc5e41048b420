"""One detector of a comparison, in a process of its own that may run another Python with another torch.

It imports what its detector needs and no more, so that mmdetection's environment need not hold this package. The first
line on stdin is the settings as json; after it, one line asks for one training step or one inference, and the answer is
a line of json with its times.
"""

import contextlib
import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable

import torch

RATE = 1e-5  # weights are random: small enough that nothing diverges


def random_data(settings: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 images (B, 3, H, W), boxes (B, n, 4) of at least an eighth of the image, labels (B, n); as many for all."""
    torch.manual_seed(0)
    batch, (height, width), boxes = settings["batch"], settings["size"], settings["boxes"]
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    corners = torch.rand(batch, boxes, 2) * 0.5
    corners = torch.cat([corners, corners + 0.125 + 0.375 * torch.rand_like(corners)], dim=-1)
    labels = torch.randint(0, settings["classes"], (batch, boxes))
    return images, corners * torch.tensor([width, height, width, height]), labels


def ours(settings: dict, device: torch.device) -> Callable[[], object]:
    """The detector of `settings["config"]`, with the very step of train.py and detection of eval.py."""
    from gfl.build import build_criterion, build_detector
    from gfl.checkpoint import TrainState
    from gfl.config_file import load_config
    from gfl.evaluation.inference import detect
    from gfl.model.precision import eval_dtype, set_backends
    from gfl.structures import Batch, Targets
    from gfl.training.optim import build_optimizer
    from gfl.training.step import train_step
    from gfl.training.teacher import load_teacher

    choice = [f"optim.amp={settings['amp']}", f"optim.channels_last={str(settings['channels_last']).lower()}"]
    config = load_config(settings["config"], [*settings["overrides"], *choice])
    set_backends(config.optim)
    model = place(build_detector(config, settings["classes"]), settings, device)
    images, boxes, labels = random_data(settings)
    sizes = torch.tensor([settings["size"]] * settings["batch"])
    targets = Targets(boxes, labels, torch.ones_like(labels, dtype=torch.bool))
    batch = Batch(images, sizes, targets, torch.arange(len(images)), sizes)
    if settings["task"] == "inference":
        dtype = eval_dtype(config, device)
        return lambda: detect(model, batch.to(device), config.eval, dtype=dtype)
    criterion = build_criterion(config, model.quality, model.box_repr, load_teacher(config, device))
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    state = TrainState(model, build_optimizer(model, config.optim), scaler)
    return lambda: train_step(state, model, criterion, iter([batch]), config.optim, RATE)


def torchvision_detector(settings: dict, device: torch.device) -> Callable[[], object]:
    """torchvision's FCOS or RetinaNet; its own resizing, which would change nothing here, is left out."""
    from torchvision.models import resnet50
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    kind, width = (FCOS, 256) if settings["name"] == "fcos" else (RetinaNet, 2048)
    backbone = resnet50(norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(backbone, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(width, 256))
    size = settings["size"]
    model = kind(backbone, settings["classes"], min_size=min(size), max_size=max(size), _skip_resize=True)
    place(model, settings, device)
    images, boxes, labels = random_data(settings)

    def forward() -> object:
        targets = [{"boxes": b.to(device), "labels": n.to(device)} for b, n in zip(boxes, labels, strict=True)]
        pixels = [image.to(device).float().div(255) for image in images]
        return model(pixels, targets) if settings["task"] == "train" else model(pixels)

    return task(model, forward, settings, device)


def mmdetection(settings: dict, device: torch.device) -> Callable[[], object]:
    """mmdetection's GFL with ResNet-50. mmcv's compiled operations may be missing: of them GFL uses only NMS."""
    import torchvision

    try:
        import mmcv._ext  # noqa: F401
    except ImportError:
        operations = types.ModuleType("mmcv._ext")
        operations.__getattr__ = lambda name: None
        # In float32: under autocast to bf16 the scores are in bf16, for which there is no NMS on a CPU.
        operations.nms = lambda boxes, scores, iou_threshold, offset: torchvision.ops.nms(
            boxes.float(), scores.float(), iou_threshold
        )
        sys.modules["mmcv._ext"] = operations
    import mmdet.models
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmengine.structures import InstanceData

    init_default_scope("mmdet")
    config = Config.fromfile(f"{os.path.dirname(mmdet.__file__)}/.mim/configs/gfl/gfl_r50_fpn_1x_coco.py").model
    config.backbone.init_cfg = None
    config.bbox_head.num_classes = settings["classes"]
    model = place(MODELS.build(config), settings, device)
    images, boxes, labels = random_data(settings)
    size = tuple(settings["size"])
    shapes = {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)}

    def forward() -> object:
        samples = [DetDataSample(metainfo=shapes) for _ in images]
        for sample, b, n in zip(samples, boxes, labels, strict=True):
            sample.gt_instances = InstanceData(bboxes=b, labels=n)
        training = settings["task"] == "train"
        data = model.data_preprocessor({"inputs": list(images), "data_samples": samples}, training)
        if not training:
            return model(**data, mode="predict")
        return {"loss": model.parse_losses(model(**data, mode="loss"))[0]}

    return task(model, forward, settings, device)


def place(model: torch.nn.Module, settings: dict, device: torch.device) -> torch.nn.Module:
    """The model where and how it runs; the mode is that of the task."""
    layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format
    return model.to(device, memory_format=layout).train(settings["task"] == "train")


def task(model: torch.nn.Module, forward: Callable, settings: dict, device: torch.device) -> Callable[[], object]:
    """What is timed of a peer: inference, or a step with SGD, the gradient norm, and the test that it is finite."""
    forward = under_autocast(forward, settings, device)
    if settings["task"] == "inference":
        return forward
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=1e-4, fused=can_fuse(device))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(forward().values()).backward()
        if torch.nn.utils.clip_grad_norm_(parameters, float("inf")).isfinite():
            optimizer.step()

    return step


def can_fuse(device: torch.device) -> bool:
    """Whether this torch has the fused update, which takes half of the time; on a CPU since 2.4."""
    return device.type == "cuda" or tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)


def under_autocast(function: Callable, settings: dict, device: torch.device) -> Callable[[], object]:
    """`function` under the settings' autocast, and without gradients where it is inference."""

    def run() -> object:
        gradients = torch.inference_mode() if settings["task"] == "inference" else contextlib.nullcontext()
        with gradients, torch.autocast(device.type, torch.bfloat16, enabled=settings["amp"] == "bf16"):
            return function()

    return run


DETECTORS = {
    "ours": ours,
    "fcos": torchvision_detector,
    "retinanet": torchvision_detector,
    "mmdetection": mmdetection,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    settings = json.loads(sys.stdin.readline())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    run = DETECTORS[settings["name"]](settings, device)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else used
        print(json.dumps({**times, "memory": memory, "torch": torch.__version__}), file=answers, flush=True)


if __name__ == "__main__":
    main()
