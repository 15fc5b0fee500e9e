# make test, make lint, make demo, make demo-train: each makes .venv first if need be. PYTHON names the interpreter to make it with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# MNIST's digits where they lie beside the checkout; elsewhere the demo downloads them or draws its own.
HSAL_MNIST_DIR ?= $(abspath $(wildcard ../shared/mnist))
HSAL := HSAL_MNIST_DIR=$(HSAL_MNIST_DIR) $(abspath $(BIN))/hsal
READY := $(VENV)/.ready
# Cross-entropy to its end, where it has unlearned a part of what it knew (docs/results.md).
EPOCHS := rl=3,multiset=2,cross-entropy=8

# pip compiles nothing, which saves minutes with a package of torch's size; what is imported is compiled then, and must be kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: test slow reliability lint demo demo-train clean

$(READY): pyproject.toml
	@echo "installing into $(VENV): torch alone is 1 GB on disk in its CPU build, 200 MB to download; with CUDA, as some registries give it, 5.7 GB"
	@df -h . | awk 'NR == 2 { print "free here: " $$4 }'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[test]'
	touch $(READY)

# One process a core; the tests of a file stay together, since they share what they prepare; long files first (tests/conftest.py).
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(READY)
	$(BIN)/python -m pytest -m slow

reliability: $(READY)
	$(BIN)/python tests/reliability.py  # writes docs/reliability.md; --quick leaves the slow tests out

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache  # the house: docs/architecture.md
	$(BIN)/mypy  # the public face

# The policy that comes with hsal names and draws three images: seconds.
demo: $(READY)
	@rm -rf demo && mkdir demo
	@cd demo && $(HSAL) make-data mnist-multiset --train 0 --test 3
	@cd demo && $(HSAL) visualize --data data/mnist-multiset.h5 --rows 0-2 --gif --html --out three.png
	@echo "drawn: demo/three.png, played: demo/three.gif, to step through in a browser: demo/three.html"

# Everything from data to pictures, trained here: what to expect stands in docs/results.md. A line of progress at least every 20 s.
demo-train: $(READY)
	@echo "each step says how long it takes; 1.5 GB in demo-train/; Ctrl-C saves, and the same command goes on"
	@mkdir -p demo-train
	@cd demo-train && $(HSAL) reproduce --config ../docs/demo.toml --datasets mnist-multiset --seeds 0 --epochs $(EPOCHS) --out runs/demo --yes

clean:
	rm -rf $(VENV) build dist *.egg-info demo demo-train .pytest_cache .ruff_cache .mypy_cache .hypothesis
