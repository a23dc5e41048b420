"""Importing, training and evaluating do not use the network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.robustness

ROOT = Path(__file__).resolve().parents[2]

# Python runs a sitecustomize at every start, also of loader processes that are not forked. An audit hook is called for
# every access, also for those that bypass the socket module's functions, and cannot be removed. Unix sockets stay
# allowed: PyTorch's loader processes pass tensors through them.
GUARD = """
import os, socket, sys

def refuse(event, arguments):
    sockets = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind")
    names = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request")
    if event in sockets and arguments[0].family == socket.AF_UNIX:
        return
    if event in sockets + names:
        log = os.open(os.environ["NETWORK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{event} {arguments[1:] if event in sockets else arguments}\\n".encode())
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
    """Run Python without a network; returns the finished process and its attempts to use the network."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    log = tmp_path / "network_log"
    paths = [str(tmp_path / "guard"), str(ROOT)]
    environment |= {"OMP_NUM_THREADS": "1", "NETWORK_LOG": str(log), "PYTHONPATH": os.pathsep.join(paths)}

    def call(*words):
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        return done, log.read_text().splitlines() if log.exists() else []

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
def test_every_way_to_the_network_is_logged_and_refused(offline, source, event):
    done, attempts = offline("-c", source)
    assert done.returncode != 0
    assert "this test refuses the network" in done.stderr
    assert [line.split()[0] for line in attempts] == [event]


def test_albumentations_alone_asks_the_network(offline):
    _, attempts = offline("-c", "import albumentations")
    assert attempts


def test_importing_our_modules_does_not_ask_the_network(offline):
    commands = [path.relative_to(ROOT) for pattern in ("*.py", "scripts/*.py") for path in sorted(ROOT.glob(pattern))]
    modules = [path.relative_to(ROOT).with_suffix("") for path in sorted(ROOT.glob("gfl/**/*.py"))]
    names = [*(".".join(module.parts).removesuffix(".__init__") for module in modules), *commands]
    done, attempts = offline("-c", IMPORT_ALL, *names)
    assert done.returncode == 0, done.stderr
    assert attempts == []


def test_training_and_evaluation_do_not_ask_the_network(offline, coco_set, tmp_path):
    """With loader processes, augmentation, TensorBoard and pictures."""
    made = coco_set([(60, 40)] * 4, [(number, 7, [10, 10, 30, 25]) for number in range(4)])
    config = json.loads(json.dumps(CONFIG))
    split = {"annotations": made.annotations, "images": made.images}
    config["data"] |= {"train": split, "val": split}
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    done, attempts = offline("train.py", tmp_path / "tiny.yaml", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "last.pt").is_file()
    done, attempts = offline("eval.py", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert attempts == []
