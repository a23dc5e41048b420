"""The reference's large models, output by output; tests/model/test_detector.py has the small ones."""

import pytest
from reference import GOLDEN, deviation_from_golden

pytestmark = pytest.mark.robustness
QUICK = {"model_gfl_r18_fpn", "model_gflv2_r50_fpn"}
LARGE = sorted(path.stem for path in GOLDEN.glob("model_*.json") if path.stem not in QUICK)


@pytest.mark.parametrize("name", LARGE)
def test_outputs_equal_those_of_the_large_golden_model(name):
    assert deviation_from_golden(name) < 1e-4
