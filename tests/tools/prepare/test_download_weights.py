"""The command scripts/download_weights.py against a local server, with forged files of every kind."""

import argparse
import hashlib
import io
import threading
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from file_server import Server

from gfl.build import build_detector
from gfl.checkpoint import find_detector, load_detector
from gfl.common.errors import UserError
from gfl.common.published import FOLDER, PUBLISHED, Published
from gfl.config_file import config_from_dict
from gfl.tools.convert.state_dict import to_mmdet

ROOT = Path(__file__).resolve().parents[3]
NAME = "small"
MODEL = {
    "backbone": {"name": "resnet18", "weights": "none"},
    "fpn": {"channels": 64},
    "head": {"channels": 64, "num_convs": 1},
}


def forge(**head):
    """A file of mmdetection's kind, and the state dict of the same detector here."""
    model = MODEL | {"head": MODEL["head"] | head}
    config = config_from_dict({"model": model}, "test")
    state = build_detector(config, 3).state_dict()
    file = io.BytesIO()
    torch.save({"meta": {"CLASSES": ["disc", "ring", "cross"]}, "state_dict": to_mmdet(state, config)}, file)
    return file.getvalue(), state


@pytest.fixture
def download(script, tmp_path, monkeypatch, capsys):
    """Serve some bytes, whose hash is published unless another is given, and call the command."""
    command = script("download_weights")
    (tmp_path / f"{NAME}.yaml").write_text(yaml.safe_dump({"model": MODEL}))
    monkeypatch.setattr(command, "CONFIGS", tmp_path)
    monkeypatch.chdir(tmp_path)

    def call(content, *, sha256="", fault="", name=NAME):
        digits = sha256 or hashlib.sha256(content).hexdigest()[:8]
        monkeypatch.setattr(command, "PUBLISHED", {NAME: Published(f"gfl/small-{digits}.pth", 12.3)})
        with Server(content) as server:
            server.fault = fault
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            try:
                command.main(argparse.Namespace(name=name, out=None, server=f"http://127.0.0.1:{server.server_port}"))
            finally:
                server.shutdown()
        return capsys.readouterr().out

    return call


def test_a_published_file_becomes_a_detector_and_the_original_goes(download, tmp_path):
    content, state = forge()
    printed = download(content)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [f"{NAME}.pt"]
    loaded = load_detector(FOLDER / f"{NAME}.pt")
    assert loaded.class_names == ("disc", "ring", "cross")
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())
    assert f"python eval.py data/weights/{NAME}.pt" in printed
    assert "is there already" in download(content, fault="404")  # nothing is asked for
    assert "data/weights" in download(content, name=None).splitlines()[1]


def test_a_broken_connection_is_resumed(download):
    assert "wrote" in download(forge()[0], fault="breaks off")


def test_a_damaged_file_at_the_destination_is_not_taken_for_done(download, tmp_path):
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / f"{NAME}.pt").write_bytes(b"half")
    with pytest.raises(UserError):
        download(forge()[0])


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch executed'\ntR.")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "options", "code"),
    [
        (forge()[0], {"sha256": "00000000"}, "hash"),
        (b"<html>not found</html>", {"sha256": "25944287"}, "hash"),
        (forge()[0], {"fault": "404"}, "server"),
        (forge(reg_max=8)[0], {}, "config"),
        (forge()[0][:-1000], {}, None),
        (archive(), {}, None),
        (b"", {}, None),
    ],
    ids=["another file", "a page", "missing", "another architecture", "truncated", "hostile", "empty"],
)
def test_forged_files_are_refused_and_leave_no_checkpoint(download, tmp_path, content, options, code):
    with pytest.raises(UserError) as error:
        download(content, **options)
    assert code is None or error.value.code == code
    assert not list((tmp_path / FOLDER).glob("*.pt"))
    assert not (tmp_path / "executed").exists()


def test_unknown_names_list_the_others(download):
    with pytest.raises(UserError, match=NAME) as error:
        download(b"", name="large")
    assert error.value.code == "name"


def test_the_table_names_configs_and_hashes():
    assert all((ROOT / "configs" / f"{name}.yaml").is_file() for name in PUBLISHED)
    assert all(len(entry.sha256) == 8 and int(entry.sha256, 16) for entry in PUBLISHED.values())


def test_a_missing_published_checkpoint_names_the_command():
    with pytest.raises(UserError, match=r"scripts/download_weights\.py gfl_r50_fpn_1x_coco"):
        find_detector(FOLDER / "gfl_r50_fpn_1x_coco.pt")
