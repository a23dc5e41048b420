# make demo: set up, write soft shapes, train, evaluate, predict. make test: set up, then the tests; make test-all: also
# those that inject faults, fuzz or train long. VENV=path puts the environment elsewhere, PYTHON=python3.12 builds it
# with another interpreter.

PYTHON ?= python3
VENV ?= .venv
RUN := runs/demo
BIN := $(VENV)/bin
# Scripts import the package of this checkout, even if the environment is shared with another one.
export PYTHONPATH := $(CURDIR)
READY := $(VENV)/.installed

.PHONY: demo test test-robustness test-all setup

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@echo "setting up $(VENV): about 6 GB with CUDA libraries, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/python scripts/make_shapes.py
	$(BIN)/python train.py configs/gfl_r18_shapes.yaml run_dir=$(RUN) --resume
	$(BIN)/python eval.py $(RUN)
	$(BIN)/python scripts/predict.py $(RUN) data/shapes/val/000005.png -o $(RUN)/pictures --score 0.5
	@echo
	@echo "checkpoint   $(RUN)/best.pt"
	@echo "curves       $(BIN)/tensorboard --logdir $(RUN)/tensorboard"
	@echo "pictures     $(RUN)/pictures/"
	@ls $(RUN)/pictures/*.png | sed 's/^/             /'

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not robustness"

test-robustness: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m robustness

test-all: test test-robustness
