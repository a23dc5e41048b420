"""The published checkpoints of our configs: mmdetection's, whose addresses and results are in its metafiles."""

from pathlib import Path, PurePosixPath
from typing import NamedTuple

SERVER = "https://download.openmmlab.com/mmdetection/v2.0"
FOLDER = Path("data/weights")  # where they are kept, as CONFIG.pt


class Published(NamedTuple):
    """A checkpoint on the server."""

    path: str
    ap: float  # on COCO val2017

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def sha256(self) -> str:
        """The first digits, which end its name."""
        return PurePosixPath(self.path).stem.rpartition("-")[2]


PUBLISHED = {  # by the name of the config here
    "gfl_r50_fpn_1x_coco": Published("gfl/gfl_r50_fpn_1x_coco/gfl_r50_fpn_1x_coco_20200629_121244-25944287.pth", 40.2),
    "gfl_r50_fpn_ms2x_coco": Published(
        "gfl/gfl_r50_fpn_mstrain_2x_coco/gfl_r50_fpn_mstrain_2x_coco_20200629_213802-37bb1edc.pth", 42.9
    ),
    "gfl_r101_fpn_ms2x_coco": Published(
        "gfl/gfl_r101_fpn_mstrain_2x_coco/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth", 44.7
    ),
    "gfl_r101_dcnv1_c3c5_fpn_ms2x_coco": Published(
        "gfl/gfl_r101_fpn_dconv_c3-c5_mstrain_2x_coco/"
        "gfl_r101_fpn_dconv_c3-c5_mstrain_2x_coco_20200630_102002-134b07df.pth",
        47.1,
    ),
    "gfl_x101_32x4d_fpn_ms2x_coco": Published(
        "gfl/gfl_x101_32x4d_fpn_mstrain_2x_coco/gfl_x101_32x4d_fpn_mstrain_2x_coco_20200630_102002-50c1ffdb.pth", 45.9
    ),
    "gfl_x101_32x4d_dcnv1_c4c5_fpn_ms2x_coco": Published(
        "gfl/gfl_x101_32x4d_fpn_dconv_c4-c5_mstrain_2x_coco/"
        "gfl_x101_32x4d_fpn_dconv_c4-c5_mstrain_2x_coco_20200630_102002-14a2bf25.pth",
        48.1,
    ),
    "atss_r50_fpn_1x_coco": Published("atss/atss_r50_fpn_1x_coco/atss_r50_fpn_1x_coco_20200209-985f7bd0.pth", 39.4),
}


def download_advice(path: Path) -> str:
    """How to get the published checkpoint that is missing at `path`; empty for any other file."""
    is_published = path.name == f"{path.stem}.pt" and path.stem in PUBLISHED
    return f"python scripts/download_weights.py {path.stem} downloads it" if is_published else ""
