# One virtual environment in .venv; a stamp per set of extras, renewed when pyproject.toml or constraints.txt change.
#   make demo GPU=1     installs torch's CUDA build, which is the default where nvidia-smi finds a GPU, unless `GPU=` is empty
#   make test COVERAGE=1     also prints the share of lines that the tests run, as CI does
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet -c constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
GPU ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1)
COMMA := ,
WITH_GPU := $(if $(GPU),$(COMMA)gpu)
COVER := $(if $(COVERAGE),--cov --cov-report=term:skip-covered)
PYTEST := $(BIN)/pytest -q -n 2 --dist loadfile $(COVER)

export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Measured on Linux with the CPU build of torch; CUDA's libraries are some 3 GB more.
SIZE_train := 2.3 GB, two to five minutes the first time
SIZE_test := 2.7 GB, two to five minutes the first time
SIZE_bench := more than 2.7 GB, some five minutes the first time

.DEFAULT_GOAL := help
.PHONY: help demo test check faults bench bench-gpu bench-io bench-nights bench-scale bench-logs bench-train docs docs-config clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed-train$(WITH_GPU) ## build and search a release of the small catalogue in configs/demo
	$(BIN)/nightcrate nightly -c configs/demo.yaml
	@echo
	$(BIN)/nightcrate search file://./build/demo/store "songs about rain" -k 5
	@echo
	$(BIN)/nightcrate search file://./build/demo/store "orchestral baroque music" -k 5
	@echo
	@echo 'Next, your own words:'
	@echo '  $(BIN)/nightcrate search file://./build/demo/store "christmas episode" --collection tracks -k 5'
	@echo 'and your own catalogue, a CSV, JSON lines or Parquet file:'
	@echo '  $(BIN)/nightcrate init tracks.csv'

test: .venv/.installed-test$(WITH_GPU) ## all tests but the long forms
	$(PYTEST)

check: .venv/.installed-test$(WITH_GPU) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: .venv/.installed-test$(WITH_GPU) ## every fault case in its long form, and a table of the results (an hour on two cores)
	$(PYTEST) -m 'case or faults'

bench: .venv/.installed-bench$(WITH_GPU) ## measure against the peers; writes build/bench.json
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/run.py --out build/bench.json

bench-io: .venv/.installed-bench$(WITH_GPU) ## requests and bytes of a night by stage, to 3 million rows and over 60 nights; writes build/io.json (an hour)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_io.py --out build/io.json

bench-nights: .venv/.installed-bench$(WITH_GPU) ## what ten nights of small changes cost; writes build/nights.json (half an hour)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_change.py --out build/nights.json

bench-scale: .venv/.installed-bench$(WITH_GPU) ## synthetic vectors, to a million rows; writes build/scale.json (half an hour)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_scale.py --out build/scale.json

bench-logs: .venv/.installed-bench$(WITH_GPU) ## search logs and mining negatives; writes build/logs.json (ten minutes the first time)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_logs.py --out build/logs.json

bench-train: .venv/.installed-bench$(WITH_GPU) ## training against its peer, and cross-validated; writes build/train.json (two hours)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_train.py --out build/train.json

bench-gpu: .venv/.installed-bench$(WITH_GPU) ## encoders of three sizes on a GPU against the peer; writes build/gpu.json
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_gpu.py --out build/gpu.json

docs-config: .venv/.installed-test ## write configs/schema.json and the keys in docs/configuration.md from the classes
	$(BIN)/python -m jobs.config.reference

docs: .venv/.installed-docs ## the documentation as a site in build/site; open its index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## delete build/ and the caches, but not .venv
	rm -rf build .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/.installed-%: pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'Installing nightcrate[$*] into .venv: $(SIZE_$(firstword $(subst $(COMMA), ,$*)))'
	@$(if $(GPU),:,$(CPU_TORCH))
	@$(PIP) -e '.[$*]'
	@touch $@

# Without a GPU, before pip can choose the CUDA build: keep a torch of the right version, else install the CPU build from
# where pip looks (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS), else from PyTorch's own index.
define CPU_TORCH
if [ "$$(uname -s)" != Linux ]; then :; \
elif $(BIN)/pip freeze | grep -q '^torch==$(TORCH)\b'; then :; \
elif $(PIP) 'torch==$(TORCH)+cpu' 2>/dev/null; then :; \
elif $(PIP) --extra-index-url $(TORCH_CPU_INDEX) 'torch==$(TORCH)+cpu' 2>/dev/null; then :; \
else echo "No CPU build of torch found: pip installs the CUDA build, some 3 GB. It runs on a CPU too."; fi
endef
