# Two commands do everything on a fresh machine with Python 3.11: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint clean

run: $(VENV)/.installed
	$(BIN)/digs-survey run catalogs/sample.zarr --config quick --run-dir runs/sample --retrain

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --durations 20

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch first and pinned, so that nothing else chooses its build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,fsps,s3,dashboards]'
	touch $@

clean:
	rm -rf $(VENV) runs
