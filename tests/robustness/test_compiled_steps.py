"""Steps that are really compiled: one graph for all sizes, and the losses, weights and names of steps that are not."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from command_line import ENVIRONMENT, ROOT, Project, records
from tiny_detector import make_config

from gfl.build import build_criterion, build_detector
from gfl.config import DistillConfig, OptimConfig, PointsConfig
from gfl.structures import Batch, Targets
from gfl.training.acceleration import accelerated, compile_problem
from gfl.training.step import compute_losses
from gfl.training.teacher import Teacher

pytestmark = pytest.mark.robustness
CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are compiled, by a compiler that runs them as they are."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode="default", **how: compiler(f, backend=backend, **how))
    compiler_state = (accelerated, compile_problem)
    for function in compiler_state:
        function.cache_clear()
    compile_problem(CPU)
    found.clear()
    yield found
    for function in compiler_state:
        function.cache_clear()
    torch.compiler.reset()


def random_batch(height, width, boxes):
    """Two images, of which the second is smaller."""
    generator = torch.Generator().manual_seed(height + width + boxes)
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)
    corners = torch.rand(2, boxes, 2, generator=generator) * 0.5
    sides = 0.1 + 0.3 * torch.rand(2, boxes, 2, generator=generator)
    corners = torch.cat([corners, corners + sides], dim=-1) * torch.tensor([width, height] * 2)
    labels = torch.randint(0, 3, (2, boxes), generator=generator)
    sizes = torch.tensor([[height, width], [height - 40, width - 5]])
    return Batch(images, sizes, Targets(corners, labels, labels >= 0), torch.tensor([1, 2]), sizes)


def with_teacher(config, taught):
    distill = DistillConfig(teacher="any" if taught else "none", region="both")
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, distill=distill))


@pytest.mark.parametrize("taught", [False, True])
def test_one_graph_serves_all_sizes_and_any_number_of_boxes(taught, graphs):
    config = with_teacher(make_config(), taught)
    model, teacher = build_detector(config, 3).train(), Teacher(build_detector(config, 5), None)
    criterion = build_criterion(config, model.quality, model.box_repr, teacher)
    optim = OptimConfig(compile="default", amp="auto")
    compiled = accelerated(compute_losses, optim, CPU)
    with torch.no_grad():
        for height, width, boxes in [(192, 192, 4), (160, 256, 7), (288, 160, 2), (384, 416, 4)]:
            batch = random_batch(height, width, boxes)
            losses = compiled(model, criterion, batch, optim)
            assert losses == compute_losses(model, criterion, batch, optim)
            assert losses["box"] > 0
            assert ("ld" in losses) == taught
    assert len(graphs) == 1


def test_a_compiled_run_saves_the_weights_and_names_of_one_that_is_not(graphs, run, tmp_path):
    saved = []
    for how in ("none", "default"):
        run(compile=how)
        saved.append(torch.load(tmp_path / "run" / "last.pt", weights_only=True))
        (tmp_path / "run").rename(tmp_path / how)
    assert graphs
    assert saved[0]["model"].keys() == saved[1]["model"].keys()
    # Close only: a compiler gets the class losses in one piece, so that they are summed in another order.
    for name, tensor in saved[0]["model"].items():
        torch.testing.assert_close(saved[1]["model"][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_inductor_computes_the_losses_and_gradients_of_eager_steps():
    """Three levels only: inductor needs minutes for the sizes of five. With a teacher, since that has all losses."""
    if problem := compile_problem(CPU):
        pytest.skip(problem)
    config = with_teacher(make_config(), taught=True)
    model = dataclasses.replace(config.model, points=PointsConfig(strides=(8, 16, 32)))
    config, found = dataclasses.replace(config, model=model), []
    batch = random_batch(160, 192, 3)
    for how in ("none", "default"):
        torch.manual_seed(0)
        model, teacher = build_detector(config, 3).train(), Teacher(build_detector(config, 5), None)
        torch.nn.init.normal_(teacher.detector.head.reg_out.weight)
        criterion = build_criterion(config, model.quality, model.box_repr, teacher)
        optim = OptimConfig(compile=how)
        losses = accelerated(compute_losses, optim, CPU)(model, criterion, batch, optim, None)
        sum(losses.values()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((losses, torch.nn.utils.get_total_norm(gradients)))
    for name, loss in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], loss, rtol=1e-4, atol=0)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=0)


def test_a_run_without_a_compiler_says_so_in_one_line_and_trains(tmp_path):
    project, losses = Project(tmp_path, train=4, val=2, epochs=1), []
    for how in ("none", "default"):
        command = [sys.executable, "train.py", project.config, f"run_dir={tmp_path / how}", f"optim.compile={how}"]
        environment = ENVIRONMENT | {"CXX": "/nonexistent"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        losses.append(records(tmp_path / how, "loss/cls")[0]["loss/box"])
    (line,) = (line for line in done.stdout.splitlines() if "optim.compile" in line)
    assert line.startswith("note     optim.compile: nothing can be compiled here, so it trains without: ")
    assert losses[0] == losses[1]
