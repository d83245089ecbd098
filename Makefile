# One virtual environment in .venv; a stamp per set of extras, renewed when pyproject.toml or constraints.txt change.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/pytest -q -n 2 --dist loadfile

export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check faults bench bench-nights bench-scale bench-train docs clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed-build ## build and search a release of the small catalogue in configs/demo
	$(BIN)/nightcrate nightly -c configs/demo.yaml
	@echo
	$(BIN)/nightcrate search file://./build/demo/store "songs about rain" -k 5
	@echo
	$(BIN)/nightcrate search file://./build/demo/store "orchestral baroque music" -k 5
	@echo
	@echo 'Next, your own words:'
	@echo '  $(BIN)/nightcrate search file://./build/demo/store "christmas episode" --collection tracks -k 5'
	@echo 'and your own catalogue: copy configs/local.yaml, then'
	@echo '  $(BIN)/nightcrate plan -c my.yaml'

test: .venv/.installed-test ## all tests but the long forms
	$(PYTEST)

check: .venv/.installed-test ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: .venv/.installed-test ## every fault case in its long form, and the table of what held (an hour on two cores)
	$(PYTEST) -m 'case or faults'

bench: .venv/.installed-bench ## measure against the peers; writes build/bench.json
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/run.py --out build/bench.json

bench-nights: .venv/.installed-bench ## what ten nights of small changes cost; writes build/nights.json (half an hour)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_change.py --out build/nights.json

bench-scale: .venv/.installed-bench ## synthetic vectors, to a million rows; writes build/scale.json (half an hour)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_scale.py --out build/scale.json

bench-train: .venv/.installed-bench ## training against its peer, and cross-validated; writes build/train.json (two hours)
	@mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_train.py --out build/train.json

docs: .venv/.installed-docs ## the documentation as a site in build/site; open its index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## delete build/ and the caches; .venv stays
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/.installed-%: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing nightcrate[$*] into .venv (a few minutes the first time)"
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[$*]'
	@touch $@
