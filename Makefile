# make lab    sets everything up (once) and opens the first notebook in JupyterLab
# make test   sets everything up (once) and runs what a change must pass
# make quick  the tests that need no browser, no notebook and no process of their own: under 3 minutes on two cores
# make lint   the linter and the type checker alone
# make results  makes all of results/ anew (hours; nothing else should run)
# make thousand  draws a thousand schemas and writes by each with random weights, for minutes
# make fuzz   tries 20,000 cases of bad input
# make docs   builds the site from guides, notebooks and docstrings, offline, into build/docs
# make notebooks  runs the notebooks again, after nano has changed
#
# JUPYTER_FLAGS, e.g. "--no-browser --port 9000", and PYTEST_FLAGS, e.g. "-x -k trace", are handed on.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --constraint constraints.txt
NOTEBOOKS := $(if $(wildcard notebooks/*.ipynb),notebooks)
JS_TESTS := $(wildcard tests/lab/*/*.test.mjs)
AXE := tests/browser/node_modules/.package-lock.json
# JupyterLab asks on its first start whether it may fetch news, in a box over the notebook: here it does neither.
QUIET := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}
ALLOW_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# One thread for all that runs here, so that times can be compared: on models this small several only wait for each
# other. A large model on a CPU wants more: make lab OMP_NUM_THREADS=8
export OMP_NUM_THREADS ?= 1

.PHONY: docs fuzz thousand notebooks lab test quick lint results tools clean

lab: $(VENV)/.lab
	$(BIN)/jupyter lab $(ALLOW_ROOT) --ServerApp.root_dir="$(CURDIR)" $(JUPYTER_FLAGS) notebooks/01_first_canvas.ipynb

# What drives Chromium first, then the rest; the second runs whatever the first said. (5: the flags chose no test.) Tests
# that start programs wait for them, so two cores take three tests at a time. Files are taken in order: sorted by their
# number of tests, those with a few long ones would come last, and one core would wait for the others.
test: lint tools $(AXE)
	$(if $(JS_TESTS),node --test $(JS_TESTS))
	failed=; \
	$(BIN)/pytest -p no:nbval -n 2 --dist loadfile --durations=10 $(PYTEST_FLAGS) tests/browser || [ $$? = 5 ] || failed=1; \
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env --nbval-cell-timeout=180 --durations=20 $(PYTEST_FLAGS) $(NOTEBOOKS) tests --ignore tests/browser || [ $$? = 5 ] || failed=1; \
	[ -z "$$failed" ]

quick: $(VENV)/.test
	$(BIN)/pytest -p no:nbval -n 2 --dist loadfile --no-loadscope-reorder -m "not (slow or browser or subprocess)" --durations=20 $(PYTEST_FLAGS) tests --ignore tests/browser

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=$(VENV)/names $(BIN)/lint-imports

# The stamps: set-up runs again only when a dependency or a pin has changed.
# torch goes first and alone: asked for with its exact pin, a local build of it (CPU) is taken where pip has one.
$(VENV)/.lab: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --editable .
	mkdir -p $(VENV)/etc/jupyter/labconfig
	printf '%s\n' '$(QUIET)' > $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json
	touch $@

$(VENV)/.test: $(VENV)/.lab
	$(PIP) --editable '.[test]'
	mkdir -p $(VENV)/names
	ln -sfn ../../lab $(VENV)/names/dgemma_lab
	ln -sfn ../../evals $(VENV)/names/dgemma_evals
	touch $@

# The browser tests drive Debian's own Chromium and check pages with axe-core, which npm brings.
$(AXE): tests/browser/package-lock.json | tools
	cd tests/browser && npm ci --no-audit --no-fund
	touch $@

tools:
	@missing=; \
	for tool in chromium:chromium node:nodejs npm:npm cc:build-essential; do \
	  command -v $${tool%:*} >/dev/null || missing="$$missing $${tool#*:}"; \
	done; \
	command -v firefox-esr >/dev/null || command -v firefox >/dev/null || missing="$$missing firefox-esr"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update && apt-get install --yes --no-install-recommends $$missing; \
	else \
	  echo "The tests need$$missing (Debian, Ubuntu: sudo apt-get install$$missing)." >&2; exit 1; \
	fi

# Ten times the cases of bad input that `make test` tries.
fuzz: $(VENV)/.test
	DGEMMA_FUZZ=20000 $(BIN)/pytest $(PYTEST_FLAGS) tests/fuzz

thousand: $(VENV)/.test
	$(BIN)/pytest -m thousand $(PYTEST_FLAGS) tests/constraints

docs: $(VENV)/.test
	$(BIN)/python -m scripts.build_docs

# Runs all notebooks; keeps the outputs that a page without JavaScript shows, and the players of the site. Needed when nano
# changes; nothing else should run.
notebooks: $(VENV)/.test tools
	$(BIN)/python -m scripts.execute_notebooks

# The standing results, each written into a folder of its own, then one page of all. A stopped run goes on.
results: $(VENV)/.test
	$(PIP) --editable '.[benchmarks,gguf]'
	$(BIN)/dgemma compare nano nano:ar nano:spec --limit 500 --seeds 3 --out results/nano
	$(BIN)/dgemma compare nano nano:ar nano:spec --limit 20 --seeds 5 --batch 1,2,4,8,16,32 --rate 1,4,16,64 --out results/front
	$(BIN)/dgemma compare nano gguf:gemma3-270m --limit 20 --num-fewshot 0,5 --out results/gemma3
	$(BIN)/dgemma eval run --model dgemma-ar --tasks dgemma_gsm8k_100,dgemma_hellaswag_100 --output_path results/public
	$(BIN)/dgemma eval run --model hf --model_args pretrained=$$($(BIN)/python -c "from dgemma_evals.writers.gguf import converted; print(converted('gemma3-270m'))") \
	  --tasks dgemma_gsm8k_100,dgemma_hellaswag_100 --device cpu --output_path results/public
	$(BIN)/dgemma flips --dtype float32,bfloat16 --batch 1,3,8 --limit 8 --out results/flips
	for table in steps write tokens start growth memory; do $(BIN)/dgemma bench $$table --out results/bench || exit 1; done
	$(BIN)/python -m scripts.measure_nano
	$(BIN)/python -m scripts.measure_speculation --candidates --count 30 --timed 5 --out results/speculation/candidates.json
	$(BIN)/python -m scripts.measure_speculation --split test --timed 200 --repeats 2 \
	  --draft adaptive --draft fixed:positions=16 --draft fixed
	$(BIN)/python -m scripts.prove_speculation --split test
	for format in "quantize int8" "quantize int4" "dtype bfloat16"; do \
	  $(BIN)/python -m scripts.prove_speculation --$$format --count 25 --sampled 0 --backends torch \
	    --out results/speculation/$${format#* }.json || exit 1; done
	$(BIN)/python -m scripts.measure_minds --split test
	$(BIN)/python -m scripts.measure_grammars --count 500
	$(BIN)/python -m scripts.measure_slots --task nano --count 50 --out results/slots/nano
	$(BIN)/python -m scripts.measure_slots --task hellaswag --out results/slots/hellaswag
	$(BIN)/python scripts/make_tuning_data.py --out runs/data
	$(BIN)/python scripts/measure_tuning.py --data runs/data --out results/tuning
	$(BIN)/python scripts/measure_tuning.py --data runs/data --out results/tuning --tasks binary_matrix --part examples
	$(BIN)/python scripts/measure_draft_adapter.py
	$(BIN)/python -m scripts.record_structure
	$(BIN)/dgemma bench index --out results
	rm -f results/*/report.html results/*/bench.html   # index.html holds them all, and plotly.js once

clean:
	rm -rf $(VENV) build *.egg-info tests/browser/node_modules
