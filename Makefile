# make demo   set up and train every stage in small on the embedded problems (about ten minutes)
# make test   what CI runs          make lint   style and types
# make soak   200 faults injected into runs of all stages: what they cost (a quarter of an hour; SOAK="--faults 60 --seed 1")
# make schema settings reference    make bench  benchmarks         make clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINI := storage/datasets_v2/mini
RUNS := storage/checkpoints
# In the order in which one needs the other.
STAGES := baseline critic verifiable reference rho1

.PHONY: demo test soak lint schema bench clean

# One stamp a set of extras: installed again only when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $(PYTHON) is older; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	@touch $@

# The CUDA plugin lies in a folder of its own: in the environment it would have every command look for a GPU.
# Where it cannot be had, the tests that compile for GPUs are skipped by name.
$(VENV)/.installed-plan: $(VENV)/.installed-test
	@version=$$($(BIN)/python -c 'import jaxlib; print(jaxlib.__version__)'); \
	if $(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/plan "jax-cuda12-plugin==$$version" \
		"jax-cuda12-pjrt==$$version" nvidia-cudnn-cu12 nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12; \
	then touch $@; else echo "the CUDA plugin could not be installed: no test compiles for GPUs"; fi

demo: $(VENV)/.installed
	@test -d $(MINI) || $(BIN)/python -m wmtp_jax.prepare --dataset mini --output $(MINI)
	@trap 'exit 130' INT TERM; for stage in $(STAGES); do \
		$(BIN)/python -m wmtp_jax.train --stage $$stage --config configs/$$stage/micro.yaml || exit $$?; \
	done
	$(BIN)/python -m wmtp_jax.complete --model $(RUNS)/verifiable/verifiable-micro --count 3
	$(BIN)/python -m wmtp_jax.report $(foreach stage,$(STAGES),$(RUNS)/$(stage)/$(stage)-micro)
	@echo "Runs: $(RUNS)/<stage>/<stage>-micro"

# A process for each core of a small machine; the tests of a file share their compiled steps.
test: $(VENV)/.installed-plan
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=25

soak: $(VENV)/.installed-test
	PYTHONPATH=tests:. $(BIN)/python -m faults.soak $(SOAK)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schema: $(VENV)/.installed
	$(BIN)/python -m wmtp_jax.config_reference

bench: $(VENV)/.installed-test
	@test -d $(MINI) || $(BIN)/python -m wmtp_jax.prepare --dataset mini --output $(MINI)
	$(BIN)/python -m benchmarks.training_step
	$(BIN)/python -m benchmarks.checkpoint --gigabytes 0.5
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.data --solutions 20000

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache storage/cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
