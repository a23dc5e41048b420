"""Who may import whom: every module stands strictly above all it imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the bottom up; a new module needs a row here. The packages' own files import nothing.
ROWS = [
    {
        "gfl",
        "gfl.data",
        "gfl.model",
        "gfl.common.errors",
        "gfl.structures",
        "gfl.training.signals",
        "gfl.common.findings",
    },
    {
        "gfl.common.dataclass_from_dict",
        "gfl.method.boxes",
        "gfl.common.distributed",
        "gfl.tools.convert.torch_file",
        "gfl.common.files",
        "gfl.evaluation.draw",
    },
    {"gfl.common.yaml_file", "gfl.data.bad_images"},
    {
        "gfl.config",
        "gfl.method.losses",
        "gfl.training.log",
        "gfl.model.fpn",
        "gfl.model.backbone",
        "gfl.data.transforms",
        "gfl.data.shapes",
        "gfl.data.coco",
        "gfl.tools.prepare.download",
        "gfl.tools.prepare.to_coco",
    },
    {"gfl.tools.prepare.voc", "gfl.tools.prepare.yolo"},
    {
        "gfl.method.points",
        "gfl.method.box_representation",
        "gfl.training.optim",
        "gfl.tools.convert.architecture",
        "gfl.ablation.study",
        "gfl.tools.doctor.annotations",
        "gfl.tools.doctor.images",
    },
    {"gfl.method.quality", "gfl.method.assign", "gfl.model.head", "gfl.method.postprocess", "gfl.data.loader"},
    {"gfl.method.criterion", "gfl.model.detector", "gfl.training.data_fit"},
    {
        "gfl.checkpoint",
        "gfl.evaluation.coco_eval",
        "gfl.tools.convert.state_dict",
        "gfl.training.summary",
        "gfl.tools.doctor.report",
    },
    {"gfl.evaluation.predictions", "gfl.training.nonfinite", "gfl.training.resume", "gfl.training.finetune"},
    {"gfl.evaluation.analysis"},
    {"gfl.evaluation.plots"},
]
ROW = {module: row for row, modules in enumerate(ROWS) for module in modules}
PROGRAMS = len(ROWS)  # train.py, eval.py and scripts/* stand above all


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for pattern in ("gfl/**/*.py", "train.py", "eval.py", "scripts/*.py")
    for path in sorted(ROOT.glob(pattern))
}


def imports(source, known):
    """The modules of this project that a source imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this project"
            # `from gfl import boxes` imports a module, `from gfl.method.boxes import box_iou` something in it
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in members]
        else:
            continue
        found.update(name for name in names if name in known)
    return found


def test_imports_are_found_in_every_form():
    source = "import gfl.a\nfrom gfl import b, other\nfrom gfl.c import d\nimport json\ndef f():\n    import gfl.e as e"
    known = {"gfl", "gfl.a", "gfl.b", "gfl.c", "gfl.d", "gfl.e"}
    assert imports(source, known) == {"gfl", "gfl.a", "gfl.b", "gfl.c", "gfl.e"}


def test_every_module_has_a_row_and_every_row_a_module():
    assert {name for name in FILES if name.split(".")[0] == "gfl"} == set(ROW)
    assert {"train", "eval"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_from_lower_rows_only(name):
    row = ROW.get(name, PROGRAMS)
    wrong = {other for other in imports(FILES[name].read_text(), FILES) if ROW.get(other, PROGRAMS) >= row}
    assert wrong == set()


def imported_indirectly(name):
    direct = imports(FILES[name].read_text(), FILES)
    return direct.union(*(imported_indirectly(other) for other in direct))


def test_the_criterion_and_the_model_do_not_know_each_other():
    """They meet in `HeadOutput`, not even by way of a third module."""
    assert not {name for name in imported_indirectly("gfl.method.criterion") if name.startswith("gfl.model")}
    for name in FILES:
        if name.startswith("gfl.model."):
            assert not imported_indirectly(name) & {"gfl.method.assign", "gfl.method.criterion"}, name
