"""No source file contains a call that executes what a file or a text holds.

The walk over the sources resolves names, also imported under other names (``from pickle import loads as x``), but not
names assembled at run time (``getattr``), which nobody writes by mistake. tests/robustness/test_network.py checks that
the commands do not use the network.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("*.py", "gfl/**/*.py", "scripts/**/*.py")
FILES = {
    str(path.relative_to(ROOT)): path for pattern in (*PRODUCT, "tests/**/*.py") for path in sorted(ROOT.glob(pattern))
}

# Using one of these, or a member of it, may run code that a file or a text holds.
FORBIDDEN = (
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle", "dill", "cloudpickle", "joblib", "shelve"),
    *("marshal.load", "marshal.loads", "pandas.read_pickle", "code.interact"),
    *("torch.jit.load", "torch.hub", "torch.utils.model_zoo", "torch.package", "torch.export.load"),
    *("yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.load_all"),
    *("yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.CFullLoader", "yaml.BaseLoader"),
    *("shutil.unpack_archive", "torchvision.datasets.utils", "tarfile"),
)
# Methods of an archive that write wherever its members say; gfl/tools/prepare/download.py opens members it has checked.
EXTRACTING = ("extractall", "extract")
SAFE_YAML = "gfl/common/yaml_file.py"  # elsewhere in the package not even the safe readers may be called
YAML_READERS = ("yaml.safe_load", "yaml.safe_load_all", "yaml.SafeLoader", "yaml.CSafeLoader", "yaml.load")

# By name of the file: what tests use to show that an attack would work, or to build an oracle from their own files.
EXCEPTIONS = {
    "test_backbone_weights.py": {"exec"},
    "test_checkpoint.py": {"pickle.loads"},
    "test_hostile_files.py": {"pickle.loads"},
    "test_convert_checkpoint.py": {"exec"},
    # Commands that a command prints are run as they are printed.
    "printed_commands.py": {"shell="},
    "test_printed_commands.py": {"shell="},
    "test_yolo.py": {"shell="},
}


class Names(ast.NodeVisitor):
    """What the names in a source refer to: ``np`` to numpy, ``load`` to torch.load."""

    def __init__(self, tree):
        self.known = {}
        self.visit(tree)

    def visit_Import(self, node):
        for alias in node.names:
            first = alias.name.split(".")[0]
            self.known[alias.asname or first] = alias.name if alias.asname else first

    def visit_ImportFrom(self, node):
        for alias in node.names:
            self.known[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def dotted(self, node):
        """``torch.hub.load`` for that expression under any name, or None for another kind of expression."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id, node.id).removeprefix("builtins.")
        if isinstance(node, ast.Attribute) and (owner := self.dotted(node.value)):
            return f"{owner}.{node.attr}".removeprefix("builtins.")
        return None


def keyword_is(call, name, value):
    return any(k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def findings(source, file="gfl/some.py"):
    """The unsafe uses in a source, as short texts; `file` is its path, since tests may use more."""
    tree = ast.parse(source)
    names = Names(tree)
    checked = {call.func for call in ast.walk(tree) if isinstance(call, ast.Call) and call_is_safe(call, names, file)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found |= wrong_call(node, names)
        # Names that are only assigned to, such as the config's section eval, run nothing.
        if isinstance(getattr(node, "ctx", None), ast.Load) and node not in checked:
            found |= wrong_name(names.dotted(node), file)
    return found


def call_is_safe(call, names, file):
    """Whether the arguments of a call make an unsafe function safe."""
    function = names.dotted(call.func)
    if function == "torch.load":  # the package reads with gfl/common/torch_file.py
        return file.startswith("tests/") and keyword_is(call, "weights_only", True)
    if function == "yaml.load" and file == SAFE_YAML:
        return len(call.args) == 2 and names.dotted(call.args[1]) == "_Loader"
    return False


def wrong_name(name, file):
    if name is None:
        return set()
    if name in ("torch.load", "yaml.load"):
        return {name}
    if name in YAML_READERS and not file.startswith("tests/") and file != SAFE_YAML:
        return {name}
    return {wrong for wrong in FORBIDDEN if name == wrong or name.startswith(f"{wrong}.")}


def wrong_call(call, names):
    function, found = names.dotted(call.func) or "", set()
    keywords = {keyword.arg for keyword in call.keywords}
    if function == "numpy.load" and "allow_pickle" in keywords and not keyword_is(call, "allow_pickle", False):
        found.add("numpy.load with allow_pickle")
    if "shell" in keywords and not keyword_is(call, "shell", False):
        found.add("shell=")
    if isinstance(call.func, ast.Attribute) and call.func.attr in EXTRACTING:
        found.add(f".{call.func.attr}()")
    return found


def test_the_walk_finds_all_folders():
    assert {"train.py", "gfl/common/yaml_file.py", "scripts/predict.py", "tests/test_safety.py"} <= set(FILES)


def test_no_file_contains_anything_unsafe():
    unsafe = {}
    for file, path in FILES.items():
        allowed = EXCEPTIONS.get(path.name, set()) if file.startswith("tests/") else set()
        if found := findings(path.read_text(encoding="utf-8"), file) - allowed:
            unsafe[file] = found
    assert not unsafe


def test_the_loader_of_yaml_is_safe():
    import yaml

    from gfl.common.yaml_file import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    assert _Loader.yaml_constructors == yaml.SafeLoader.yaml_constructors
    assert _Loader.yaml_multi_constructors == yaml.SafeLoader.yaml_multi_constructors


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\ntorch.load(f)", "torch.load"),
        ("import torch\ntorch.load(f, weights_only=flag)", "torch.load"),
        ("import torch as t\ndef f():\n    return t.load(f)", "torch.load"),
        ("from torch import load as get\nget(f)", "torch.load"),
        ("import torch\ntorch.hub.load('a/b', 'c')", "torch.hub"),
        ("from torch.hub import load_state_dict_from_url as get\nget(u)", "torch.hub"),
        ("import torch.jit\ntorch.jit.load(f)", "torch.jit.load"),
        ("import yaml\nyaml.load(t, L)", "yaml.load"),
        ("import yaml\nparse(t, yaml.Loader)", "yaml.Loader"),
        ("import yaml\nyaml.safe_load(t)", "yaml.safe_load"),
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("import pickle as p\nrun(target=p.loads)", "pickle.loads"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "numpy.load with allow_pickle"),
        ("from numpy import load\nload(f, allow_pickle=flag)", "numpy.load with allow_pickle"),
        ("import builtins\nbuiltins.exec('1')", "exec"),
        ("run = __import__", "__import__"),
        ("from os import system\nsystem('ls')", "os.system"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell="),
        ("import zipfile\nzipfile.ZipFile(f).extractall(d)", ".extractall()"),
        ("from shutil import unpack_archive\nunpack_archive(f)", "shutil.unpack_archive"),
        ("import torch\nmodel.eval()\ntorch.compile(m)", None),
        ("import numpy as np\nnp.load(f)\nnp.load(f, allow_pickle=False)", None),
        ("import re\nre.compile('a')\nself.eval = C().eval\nclass C:\n    eval: int = 1", None),
        ("import pickle\npickle.dumps(1)\nclass U(pickle._Unpickler): pass", None),
        ("import subprocess, yaml\nsubprocess.run(['ls'], shell=False)\nyaml.safe_dump({})", None),
    ],
)
def test_unsafe_uses_are_found_and_safe_ones_are_not(source, expected):
    assert findings(source) == ({expected} if expected else set())


def test_only_tests_may_use_torchs_own_reader():
    source = "import torch\ntorch.load(f, map_location='cpu', weights_only={})"
    assert findings(source.format(True), "tests/test_some.py") == set()
    assert findings(source.format(True)) == findings(source.format(False), "tests/test_some.py") == {"torch.load"}


def test_yaml_may_only_be_loaded_in_one_file_with_its_loader():
    source = "import yaml\nyaml.load(t, {})"
    assert findings(source.format("_Loader"), SAFE_YAML) == set()
    assert findings(source.format("Other"), SAFE_YAML) == {"yaml.load"}
    assert findings(source.format("_Loader"), "gfl/other.py") == {"yaml.load"}
    assert findings("import yaml\nyaml.safe_load(t)", "tests/test_some.py") == set()
