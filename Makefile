# Two commands do everything: `make demo` and `make test`. Each makes the virtual environment if it is missing.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready

.PHONY: demo test check lint types docs advisories slow clean
demo: $(READY)
	$(VENV)/bin/anonymizer demo

test: $(READY)  # in two processes, of which each takes whole files
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadfile

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(READY)
	$(VENV)/bin/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo "build/site/index.html"

advisories: $(READY)  # known vulnerabilities of the pinned versions; needs the network
	$(VENV)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

slow: $(READY)
	$(VENV)/bin/python -m pytest -q -m "slow or fault or scale"

check: lint types docs test slow

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@echo "Making $(VENV) (once; a few minutes and several GB, most of it PyTorch) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) demo build
