"""Which dtype the config means, on this machine."""

import pytest
import torch

from gfl.config import Config, EvalConfig, OptimConfig
from gfl.model.precision import autocast_dtype, eval_dtype, memory_format

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize(("amp", "dtype"), [("none", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_an_explicit_precision_is_taken_everywhere(amp, dtype, device):
    assert autocast_dtype(OptimConfig(amp=amp), device) is dtype


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_only_where_the_processor_has_it(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert autocast_dtype(OptimConfig(amp="auto"), CPU) is (torch.bfloat16 if native else None)


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_not_bf16_where_a_gpu_only_emulates_it(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert autocast_dtype(OptimConfig(amp="auto"), GPU) is (torch.bfloat16 if native else None)


def test_auto_agrees_with_the_processor_s_capabilities():
    """Guards the private function: it must exist, and say what the capabilities say."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if "avx512_bf16" not in capabilities:
        pytest.skip("this torch does not report the processor's capabilities")
    assert (autocast_dtype(OptimConfig(amp="auto"), CPU) is not None) == capabilities["avx512_bf16"]


@pytest.mark.parametrize(
    ("amp", "trained_with", "dtype"),
    [
        ("run", "bf16", torch.bfloat16),
        ("run", "none", None),
        ("none", "bf16", None),
        ("fp16", "bf16", torch.float16),
        ("bf16", "none", torch.bfloat16),
    ],
)
def test_evaluation_takes_the_run_s_precision_or_its_own(amp, trained_with, dtype):
    config = Config(optim=OptimConfig(amp=trained_with), eval=EvalConfig(amp=amp))
    assert eval_dtype(config, CPU) is dtype


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_layout_follows_the_precision_unless_it_is_given(dtype):
    expected = torch.contiguous_format if dtype is None else torch.channels_last
    assert memory_format(OptimConfig(channels_last="auto"), dtype) == expected
    assert memory_format(OptimConfig(channels_last=True), dtype) == torch.channels_last
    assert memory_format(OptimConfig(channels_last=False), dtype) == torch.contiguous_format
