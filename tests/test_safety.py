"""What the sources may not contain, and that nothing asks the network.

The first half reads every source file. It sees calls and names, also under other names (``from pickle import loads as
x``); it does not see what a program puts together while it runs (``getattr``), which nobody does by mistake.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("*.py", "gfl/**/*.py", "scripts/**/*.py")
FILES = {
    str(path.relative_to(ROOT)): path for pattern in (*PRODUCT, "tests/**/*.py") for path in sorted(ROOT.glob(pattern))
}

# Whatever mentions one of these, or something in it, runs code that a file or a text holds.
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
SAFE_YAML = (
    "gfl/common/yaml_file.py"  # the one reader of YAML; elsewhere in the product not even the safe ones are called
)
YAML_READERS = ("yaml.safe_load", "yaml.safe_load_all", "yaml.SafeLoader", "yaml.CSafeLoader", "yaml.load")

# What tests do to show that an attack would have worked, or to make an oracle of their own files.
EXCEPTIONS = {
    ("tests/training/test_backbone_weights.py", "exec"),
    ("tests/test_checkpoint.py", "pickle.loads"),
    ("tests/test_torch_file.py", "pickle.loads"),
    ("tests/test_torch_file.py", "torch.load without weights_only=True"),
}


class Names(ast.NodeVisitor):
    """What the names of a source stand for: ``np`` for numpy, ``load`` for torch.load."""

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
    """What is wrong in a source, as a set of short texts; `file` says where it stands, since tests may do more."""
    tree = ast.parse(source)
    names = Names(tree)
    checked = {call.func for call in ast.walk(tree) if isinstance(call, ast.Call) and call_is_safe(call, names, file)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found |= wrong_call(node, names)
        # Names that are only assigned to, such as a config's section eval, run nothing.
        if isinstance(getattr(node, "ctx", None), ast.Load) and node not in checked:
            found |= wrong_name(names.dotted(node), file)
    return found


def call_is_safe(call, names, file):
    """Whether a call makes a name harmless that alone is not."""
    function = names.dotted(call.func)
    if function == "torch.load":
        return keyword_is(call, "weights_only", True)
    if function == "yaml.load" and file == SAFE_YAML:
        return len(call.args) == 2 and names.dotted(call.args[1]) == "_Loader"
    return False


def wrong_name(name, file):
    if name is None:
        return set()
    if name == "torch.load":
        return {"torch.load without weights_only=True"}
    if name == "yaml.load":
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


def test_the_files_are_all_there():
    assert {
        "train.py",
        "eval.py",
        "gfl/common/yaml_file.py",
        "gfl/tools/prepare/download.py",
        "scripts/predict.py",
    } <= set(FILES)
    assert "tests/test_safety.py" in FILES


@pytest.mark.parametrize("file", FILES)
def test_a_file_runs_nothing_that_it_reads(file):
    found = {(file, wrong) for wrong in findings(FILES[file].read_text(encoding="utf-8"), file)}
    assert found == {exception for exception in EXCEPTIONS if exception[0] == file}


def test_the_one_loader_of_yaml_is_safe():
    import yaml

    from gfl.common.yaml_file import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    assert _Loader.yaml_constructors == yaml.SafeLoader.yaml_constructors
    assert _Loader.yaml_multi_constructors == yaml.SafeLoader.yaml_multi_constructors


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\ntorch.load(f)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(f, weights_only=False)", "torch.load without weights_only=True"),
        ("import torch\ntorch.load(f, weights_only=flag)", "torch.load without weights_only=True"),
        ("import torch as t\ndef f():\n    return t.load(f)", "torch.load without weights_only=True"),
        ("from torch import load as get\nget(f)", "torch.load without weights_only=True"),
        ("import torch\nmap(torch.load, files)", "torch.load without weights_only=True"),
        ("import torch\ntorch.hub.load('a/b', 'c')", "torch.hub"),
        ("from torch.hub import load_state_dict_from_url", None),
        ("from torch.hub import load_state_dict_from_url as get\nget(u)", "torch.hub"),
        ("import torch.jit\ntorch.jit.load(f)", "torch.jit.load"),
        ("import yaml\nyaml.load(t, L)", "yaml.load"),
        ("import yaml\nparse(t, yaml.Loader)", "yaml.Loader"),
        ("import yaml\nparse(t, yaml.CSafeLoader)", "yaml.CSafeLoader"),
        ("import yaml\nyaml.safe_load(t)", "yaml.safe_load"),
        ("from yaml import unsafe_load\nunsafe_load(t)", "yaml.unsafe_load"),
        ("import yaml\nclass L(yaml.FullLoader): pass", "yaml.FullLoader"),
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("import pickle as p\nrun(target=p.loads)", "pickle.loads"),
        ("from pickle import Unpickler\nUnpickler(f).load()", "pickle.Unpickler"),
        ("import joblib\njoblib.load(f)", "joblib"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "numpy.load with allow_pickle"),
        ("from numpy import load\nload(f, allow_pickle=flag)", "numpy.load with allow_pickle"),
        ("eval('1')", "eval"),
        ("import builtins\nbuiltins.exec('1')", "exec"),
        ("run = __import__", "__import__"),
        ("import os\nos.system('ls')", "os.system"),
        ("from os import system\nsystem('ls')", "os.system"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell="),
        ("import subprocess\nsubprocess.Popen('ls', shell=1)", "shell="),
        ("import zipfile\nzipfile.ZipFile(f).extractall(d)", ".extractall()"),
        ("with z as archive:\n    archive.extract(m, d)", ".extract()"),
        ("import tarfile\ntarfile.open(f)", "tarfile"),
        ("from shutil import unpack_archive\nunpack_archive(f)", "shutil.unpack_archive"),
        ("import torch\nmodel.eval()\ntorch.compile(m)\ntorch.load(f, map_location='cpu', weights_only=True)", None),
        ("import numpy as np\nnp.load(f)\nnp.load(f, allow_pickle=False)", None),
        ("import re\nre.compile('a')\nself.eval = C().eval\nclass C:\n    eval: int = 1", None),
        ("import pickle\npickle.dumps(1)\nclass U(pickle._Unpickler): pass", None),
        ("import subprocess, yaml\nsubprocess.run(['ls'], shell=False)\nyaml.safe_dump({})", None),
    ],
)
def test_what_is_unsafe_is_found_and_nothing_else(source, expected):
    assert findings(source) == ({expected} if expected else set())


def test_only_the_one_file_may_load_yaml_and_only_with_its_loader():
    source = "import yaml\nyaml.load(t, {})"
    assert findings(source.format("_Loader"), SAFE_YAML) == set()
    assert findings(source.format("Other"), SAFE_YAML) == {"yaml.load"}
    assert findings(source.format("_Loader"), "gfl/other.py") == {"yaml.load"}
    assert findings("import yaml\nyaml.safe_load(t)", "tests/test_some.py") == set()


# The network

# Python runs a sitecustomize at every start, also of loader processes that are not forked. An audit hook hears of every
# call, also of those that bypass the socket module's functions, and cannot be removed. Sockets between the processes of
# one machine that have no address on a network stay allowed: PyTorch's loader processes hand over tensors with them.
GUARD = """
import os, socket, sys

def refuse(event, arguments):
    asked = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind")
    named = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request")
    if event in asked and arguments[0].family == socket.AF_UNIX:
        return
    if event in asked + named:
        log = os.open(os.environ["ASKED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{event} {arguments[1:] if event in asked else arguments}\\n".encode())
        os.close(log)
        raise PermissionError("this test refuses the network")

sys.addaudithook(refuse)
"""

CONFIG = {
    "model": {
        "backbone": {"name": "resnet18", "weights": "none", "frozen_stages": -1, "norm_eval": True},
        "fpn": {"channels": 64},
        "head": {"channels": 64, "num_convs": 1},
    },
    "data": {"short_side": 64, "long_side": 64, "workers": 1, "augment": [{"name": "ToGray", "p": 0.5}]},
    "optim": {"name": "sgd", "lr": 0.01, "base_batch": 2, "batch": 2, "epochs": 1, "warmup_steps": 1, "steps": [1]},
    "eval": {"score_thresh": 0.0, "max_detections": 5},
    "log": {"interval": 1, "images": 1},
}

IMPORT_ALL = """
import importlib, runpy, sys
for name in sys.argv[1:]:
    if name.endswith(".py"):
        runpy.run_path(name, run_name="imported")
    else:
        importlib.import_module(name)
"""


@pytest.fixture
def offline(tmp_path):
    """Run Python without a network; the finished process and what it asked the network for."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    asked = tmp_path / "asked"
    paths = [str(tmp_path / "guard"), str(ROOT)]
    environment |= {"OMP_NUM_THREADS": "1", "ASKED": str(asked), "PYTHONPATH": os.pathsep.join(paths)}

    def call(*words):
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        return done, asked.read_text().splitlines() if asked.exists() else []

    return call


@pytest.mark.parametrize(
    ("source", "event"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "socket.getaddrinfo"),
        ("import socket; socket.socket().connect(('127.0.0.1', 9))", "socket.connect"),
        ("import _socket; _socket.socket().connect_ex(('127.0.0.1', 9))", "socket.connect"),
        ("import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))", "socket.sendto"),
        ("import socket; socket.gethostbyname('localhost')", "socket.gethostbyname"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')", "urllib.Request"),
        (
            "import multiprocessing as m, socket; p = m.get_context('spawn').Process(target=socket.gethostbyname,"
            "args=('localhost',)); p.start(); p.join(); exit(p.exitcode)",
            "socket.gethostbyname",
        ),
    ],
)
def test_whoever_asks_the_network_is_heard(offline, source, event):
    done, asked = offline("-c", source)
    assert done.returncode != 0
    assert "this test refuses the network" in done.stderr
    assert [line.split()[0] for line in asked] == [event]


def test_albumentations_would_ask_the_network_if_we_let_it(offline):
    _, asked = offline("-c", "import albumentations")
    assert asked


def test_no_module_asks_the_network_when_it_is_imported(offline):
    programs = [name for name in FILES if not name.startswith(("tests/", "gfl/"))]
    modules = [name.removesuffix(".py").removesuffix("/__init__") for name in FILES if name.startswith("gfl/")]
    names = [*(name.replace("/", ".") for name in modules), *programs]
    done, asked = offline("-c", IMPORT_ALL, *names)
    assert done.returncode == 0, done.stderr
    assert asked == []


def test_training_and_evaluation_do_not_ask_the_network(offline, coco_set, tmp_path):
    """With loader processes, augmentation, TensorBoard and pictures."""
    made = coco_set([(60, 40)] * 4, [(number, 7, [10, 10, 30, 25]) for number in range(4)])
    config = json.loads(json.dumps(CONFIG))
    split = {"annotations": made.annotations, "images": made.images}
    config["data"] |= {"train": split, "val": split}
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    done, asked = offline("train.py", tmp_path / "tiny.yaml", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "last.pt").is_file()
    done, asked = offline("eval.py", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert asked == []
