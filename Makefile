# `make help` lists the targets.

PYTHON ?= python3
BIN := .venv/bin
DEMO := configs/digits.yaml
RUN ?= runs/digits
OVERRIDES ?=
LAUNCH := $(BIN)/accelerate launch --quiet

.PHONY: help demo test test-slow check fix

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed ## real images -> encoder -> RDM -> DiT -> a gallery, in a few minutes on two cores
	$(LAUNCH) tools/train_encoder.py $(DEMO) run=$(RUN) $(OVERRIDES) --resume
	$(LAUNCH) tools/train_rdm.py $(DEMO) run=$(RUN) $(OVERRIDES) --resume
	$(LAUNCH) tools/train_pixel.py $(DEMO) run=$(RUN) $(OVERRIDES) --resume
	$(BIN)/python tools/sample.py $(RUN) --num 64 --seed 0 --out $(RUN)/gallery
	$(BIN)/python tools/summary.py $(RUN)

test: .venv/installed ## run the test suite without its slow tests
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/installed ## run the slow tests
	$(BIN)/python -m pytest -m slow

check: .venv/installed ## check format, lint, types and the import contract
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	# Types and imports are checked in the layout that is installed: encoders/ and generators/ inside rcg/.
	rm -rf .venv/layout && mkdir -p .venv/layout/rcg
	cp -R rcg/* encoders generators .venv/layout/rcg/
	MYPYPATH=.venv/layout $(BIN)/mypy -p rcg
	MYPYPATH=.venv/layout $(BIN)/mypy tools
	cd .venv/layout && ../bin/lint-imports --config ../../setup.cfg --no-cache

fix: .venv/installed ## mend what ruff can: format and lint
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.venv/installed: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
