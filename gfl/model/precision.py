"""In which floating-point format a network is computed, and how its tensors lie in memory."""

from dataclasses import replace

import torch

from gfl.config import Config, OptimConfig


def autocast_dtype(config: OptimConfig, device: torch.device) -> torch.dtype | None:
    """The dtype that forward passes of training are computed in; None for float32.

    ``amp: auto`` is bf16 only where the hardware has it: elsewhere it is emulated, and slower than float32.
    """
    if config.amp == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else None
    return {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.amp]


def eval_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """`autocast_dtype` of evaluation and prediction, by `eval.amp`."""
    amp = config.eval.amp
    return autocast_dtype(config.optim if amp == "run" else replace(config.optim, amp=amp), device)


def precision_name(dtype: torch.dtype | None) -> str:
    """What a dtype of autocast is called in messages."""
    return "float32" if dtype is None else f"{str(dtype).removeprefix('torch.')} autocast"


def memory_format(config: OptimConfig, dtype: torch.dtype | None) -> torch.memory_format:
    """How images and weights lie in memory, of a network that is computed under autocast to `dtype`."""
    channels_last = dtype is not None if config.channels_last == "auto" else config.channels_last
    return torch.channels_last if channels_last else torch.contiguous_format


def set_backends(config: OptimConfig) -> None:
    """Set what cuDNN and cuBLAS may do in this process."""
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cuda.matmul.allow_tf32 = config.tf32


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # torch 2.10 has no public function for it
