# make test, make lint, make demo: each makes .venv first if need be. PYTHON names the interpreter to make it with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# MNIST's digits where they lie beside the checkout; elsewhere the demo downloads them or draws its own.
HSAL_MNIST_DIR ?= $(abspath $(wildcard ../shared/mnist))
HSAL := HSAL_MNIST_DIR=$(HSAL_MNIST_DIR) $(abspath $(BIN))/hsal
READY := $(VENV)/.ready
OBJECTIVES := rl cross-entropy multiset

# pip compiles nothing, which saves minutes with a package of torch's size; what is imported is compiled then, and must be kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test slow reliability lint demo clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[test]'
	touch $(READY)

# One process a core; the tests of a file stay together, since they share what they prepare.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(READY)
	$(BIN)/python -m pytest -m slow

reliability: $(READY)
	$(BIN)/python tests/reliability.py  # writes docs/reliability.md; --quick leaves the slow tests out

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache  # the house: docs/architecture.md
	$(BIN)/mypy  # the public face

demo: $(READY)
	rm -rf demo && mkdir demo
	cd demo && $(HSAL) make-data mnist-multiset --preset quick --preview digits.png
	cd demo && $(HSAL) finetune --preset quick
	cd demo && $(HSAL) precompute --preset quick
	@echo "training by $(OBJECTIVES), two at a time; progress in demo/OBJECTIVE.log"
	$(MAKE) -j2 $(OBJECTIVES:%=demo-%)
	cd demo && $(HSAL) visualize --data data/mnist-multiset.h5 --rows 0-2 --run runs/rl --out trajectories.png
	cd demo && $(HSAL) compare runs/rl runs/cross-entropy runs/multiset
	@echo "three trajectories: demo/trajectories.png"

# One thread each: two policies side by side learn faster than one after the other on two threads.
demo-%:
	@cd demo && OMP_NUM_THREADS=1 $(HSAL) train --preset quick --objective $* --out runs/$* > $*.log 2>&1 && \
	    $(HSAL) eval --run runs/$* >> $*.log 2>&1 || { cat $*.log; exit 1; }

clean:
	rm -rf $(VENV) build dist *.egg-info demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
