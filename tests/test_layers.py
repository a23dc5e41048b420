"""Imports run one way: each folder of gfl/ is a room, and a module imports from its own room and those before it."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gfl

ROOT = Path(__file__).resolve().parent.parent
ROOMS = [
    "common",
    "structures",
    "config",
    "config_file",
    "method",
    "model",
    "data",
    "build",
    "evaluation",
    "checkpoint",
    "ablation",
    "training",
    "tools",
    "commands",  # train.py, eval.py, scripts/* and the names that `import gfl` offers
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for pattern in ("gfl/**/*.py", "train.py", "eval.py", "scripts/*.py")
    for path in sorted(ROOT.glob(pattern))
}


def imported_modules(source: str, known: set[str]) -> set[str]:
    """The modules of this project that a source imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this project"
            # `from gfl.method import boxes` imports a module, `from gfl.method.boxes import box_iou` a member of it
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in members]
        else:
            continue
        found.update(name for name in names if name in known)
    return found


IMPORTS = {name: imported_modules(path.read_text(encoding="utf-8"), set(FILES)) for name, path in FILES.items()}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "gfl" and len(parts) > 1 else "commands"


@functools.cache
def imported_indirectly(module: str) -> set[str]:
    return IMPORTS[module].union(*(imported_indirectly(other) for other in IMPORTS[module]))


def test_imports_are_found_in_every_form():
    source = "import gfl.a\nfrom gfl import b, other\nfrom gfl.c import d\nimport json\ndef f():\n    import gfl.e as e"
    known = {"gfl", "gfl.a", "gfl.b", "gfl.c", "gfl.d", "gfl.e"}
    assert imported_modules(source, known) == {"gfl", "gfl.a", "gfl.b", "gfl.c", "gfl.e"}


def test_modules_import_from_their_own_room_and_those_before_it():
    assert {room(module) for module in FILES} == set(ROOMS)
    order = {name: place for place, name in enumerate(ROOMS)}
    upward = [
        f"{module} imports {other}"
        for module in FILES
        for other in sorted(IMPORTS[module])
        if order[room(other)] > order[room(module)]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError with the circle


def test_the_method_does_not_know_the_config():
    for module in FILES:
        if room(module) == "method":
            assert "gfl.config" not in imported_indirectly(module), module


def test_the_criterion_and_the_model_do_not_know_each_other_even_indirectly():
    assert not {name for name in imported_indirectly("gfl.method.criterion") if room(name) == "model"}
    for module in FILES:
        if room(module) == "model":
            assert not imported_indirectly(module) & {"gfl.method.assign", "gfl.method.criterion"}, module


def test_importing_gfl_loads_neither_torch_nor_numpy():
    code = "import sys, gfl; dir(gfl); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "cv2"} & set(done.stdout.split())


def test_commands_that_load_torch_say_so_first():
    sources = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
    with_torch = {name for name, source in sources.items() if re.search(r"^(import|from) torch", source, re.MULTILINE)}
    slow = {name for name in FILES if {name, *imported_indirectly(name)} & with_torch}
    commands = {name for name in slow if room(name) == "commands" and name != "gfl"}
    assert commands > {"train", "eval"}
    for name in commands:
        before, _, rest = sources[name].partition("\nif __name__")
        assert "announce(" in rest.partition("\n\n")[0], name
        imports = re.findall(r"^(?:import|from) [^(\n]*(?:\([^)]*\))?", before, flags=re.MULTILINE)
        assert not imported_modules("\n".join(imports), set(FILES)) & slow, name


def test_each_public_name_is_listed_and_can_be_imported():
    assert {"load_detector", "Detector", "load_config", "build_detector", "UserError"} <= set(gfl.__all__)
    assert set(gfl.__all__) <= set(dir(gfl))
    assert [getattr(gfl, name).__name__ for name in gfl.__all__] == gfl.__all__
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = gfl.nothing_such
