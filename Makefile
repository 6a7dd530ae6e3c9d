# Every target makes the environment it needs, in .venv. With another Python: make test PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo table digits test test-all test-long lint bench clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Two models at once, one thread each, use two cores better than one model with two threads: $(1) and $(2) for $(3) minutes.
define TRAIN_BOTH
	@mkdir -p runs; export OMP_NUM_THREADS=1; \
	echo "runs/$(1) trains at the same time; follow it in runs/$(1).out"; \
	$(BIN)/textdiff train --config data/$(1).yaml --minutes $(3) --overwrite > runs/$(1).out 2>&1 & \
	$(BIN)/textdiff train --config data/$(2).yaml --minutes $(3) --overwrite; \
	first=$$?; wait $$! || { tail -n 3 runs/$(1).out; exit 1; }; exit $$first
endef

demo: .venv/.ready  ## train one model from scratch and the one in the package further (five minutes on two cores), fill gaps with both
	$(call TRAIN_BOTH,demo,demo-box,4.5)
	@for model in runs/demo runs/demo-box; do echo; echo "$$model fills:"; printf '%s\n' \
		"My fellow [GAP], the state of our union is [GAP]." "We must [GAP] the economy." \
		"I ask the Congress to [GAP] this year." \
		| $(BIN)/textdiff infill $$model --num-return-sequences 3; done

table: .venv/.ready  ## train both for what is five minutes of two cores each, print the README's table
	$(call TRAIN_BOTH,demo,demo-autoregressive,9.6)
	$(BIN)/textdiff evaluate runs/demo runs/demo-autoregressive

digits: .venv/.ready  ## train on images by Gaussian noise and by blur (about five minutes on two cores), draw and score both
	$(call TRAIN_BOTH,digits,digits-blur,4.5)
	@for model in runs/digits runs/digits-blur; do $(BIN)/textdiff generate $$model --num-return-sequences 100 --out $$model/images || exit 1; done
	$(BIN)/textdiff evaluate runs/digits runs/digits-blur

test: .venv/.ready  ## run the tests, without the slow ones
	$(BIN)/python -m pytest -m "not slow and not long" -n auto --dist loadfile

test-all: .venv/.ready  ## run every test
	$(BIN)/python -m pytest -m "not long" -n auto --dist loadfile

test-long: .venv/.ready  ## fill 100,000 random texts by tiny models of every kind, and check what is promised (TEXTDIFF_CASES=n: another number)
	$(BIN)/python -m pytest -m long -n auto

# What is around the library is checked for names and calls that are not there, so that it does not rot.
LOOSE := arg-type assignment list-item misc operator return-value union-attr var-annotated
lint: .venv/.ready  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks examples docs/*.py $(addprefix --disable-error-code=,$(LOOSE))

bench: .venv/.ready  ## time decoding against the published recipes and against generate, same weights (long): runs/bench
	$(BIN)/python benchmarks/decoding.py --out runs/bench
	$(BIN)/python benchmarks/costs.py --out runs/bench
	$(BIN)/python benchmarks/blocks.py --out runs/bench
	$(BIN)/python benchmarks/prefix.py --out runs/bench --cases ends copies compared
	$(BIN)/python benchmarks/tuned.py --out runs/bench --ways compile bf16
	$(BIN)/python benchmarks/states.py
	$(BIN)/python benchmarks/run.py

clean:  ## remove build products and caches; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and by its exact version: see constraints.txt.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "textdiff needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -U pip
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@
