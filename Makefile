# make demo: one spec, compiled, proved and trained.   make test: everything.   make check: what takes under two minutes.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check lint typecheck mutants hostile layers kernels compiles random random-0 random-1 golden bench clean

demo: $(VENV)/.run
	$(BIN)/seqc explain specs/deltaproduct.seq
	$(BIN)/seqc compile specs/deltaproduct.seq
	$(BIN)/seqc prove specs/deltaproduct.seq
	$(BIN)/python examples/train_bytes.py --spec specs/deltaproduct.seq --minutes 0.5

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

check: lint typecheck
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff check .

# A tree of links in which seqc.backends, seqc.grammar and seqc.specs lie where they are imported from.
typecheck: $(VENV)/.dev
	rm -rf .typecheck/seqc && mkdir -p .typecheck/seqc
	ln -s $(CURDIR)/seqc/* $(CURDIR)/backends $(CURDIR)/grammar $(CURDIR)/specs .typecheck/seqc/
	cd .typecheck && $(abspath $(BIN))/mypy --config-file ../pyproject.toml -p seqc

# Long runs, of which `make test` has a sample: mutants of programs, hostile texts, torch's checks of every layer, random layers (two processes at once).
mutants: $(VENV)/.dev
	$(BIN)/python tests/proof/mutants.py --each 7

hostile: $(VENV)/.dev
	$(BIN)/python tests/frontend/hostile.py --count 20000 --commands 200

layers: $(VENV)/.dev
	SEQC_EVERY_LAYER=1 $(BIN)/python -m pytest -n 2 --dist loadgroup tests/backends/test_equivalence.py tests/backends/test_operators.py \
		tests/backends/test_module_behaviour.py -k "gradgradcheck or opcheck or graph_breaks or exports or two_processes"

kernels: $(VENV)/.dev
	SEQC_EVERY_LAYER=1 $(BIN)/python -m pytest -n 2 tests/backends/test_triton.py tests/backends/test_peer_kernels.py tests/backends/test_one_file.py

compiles: $(VENV)/.dev
	$(BIN)/python examples/compile_kernels.py --jobs $(JOBS) --records examples/compiled.jsonl

random: $(VENV)/.dev
	$(MAKE) --jobs 2 --keep-going random-0 random-1

random-0 random-1: random-%:
	PYTHONPATH=tests:tests/backends $(BIN)/python tests/backends/random_runs.py --count 2000 --parts 2 --part $*

golden: $(VENV)/.dev
	$(BIN)/python -m pytest --update-golden tests/test_bad.py tests/test_docs.py $(wildcard tests/test_golden.py)

bench: $(VENV)/.run
	$(BIN)/python examples/time_forms.py

clean:
	rm -rf generated build dist .typecheck .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'seqc needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e ".[examples]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	touch $@ $(VENV)/.run
