# Needs cargo, make and Python 3.11 or newer; everything else goes into .venv, from pinned requirements.
#
#   make demo      build, then fit scikit-learn models under four backends, side by side
#   make test      every test: cargo, pytest, doctests, and the selection of the suites
#   make check     format, lint, types, then the tests
#   make bench     the side-by-side benchmarks: benchmarks/results.{json,md,svg}
#   make suites    joblib's, scikit-learn's, Dask's and CPython's own tests with rustdask active, whole
#   make sim       10,000 seeds of the scheduler's simulation
#   make fuzz      fuzz what strangers can send to a cluster; needs a nightly Rust, and `cargo install cargo-fuzz`
#   make freethreaded   build, import and test the wheel on CPython without the GIL

PYTHON ?= python3
VENV ?= .venv
SIM_SEEDS ?= 10000
BENCH_FLAGS ?=
# An interpreter that has CPython's own tests, for those of executors: the first that does.
HAS_TESTS = $(1) -c 'import test.test_concurrent_futures' 2>/dev/null && echo $(1)
PYTHON_WITH_TESTS ?= $(firstword $(foreach python,$(PYTHON) python3.14 python3.13 python3.12 python3.11 \
  $(wildcard $(HOME)/.pyenv/versions/3.1[1-9].*/bin/python),$(shell $(call HAS_TESTS,$(python)))))
FUZZ_SECONDS ?= 300
# An interpreter without the GIL, and the tests that concern it.
PYTHON_FT ?= python3.13t
FT_TESTS ?= threads or free_threaded

PY := $(VENV)/bin/python
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
RUST_SOURCES := $(shell find rust -name '*.rs' -o -name 'Cargo.toml') Cargo.toml $(wildcard Cargo.lock) pyproject.toml
PYTHON_CODE := python tests benchmarks examples

.PHONY: build demo test test-rust test-python check format lint types bench suites sim fuzz wheel freethreaded clean

build: $(VENV)/.built

$(VENV)/.deps: requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) $(PIP_INSTALL) -r requirements-dev.txt
	touch $@

# Editable: Python sources are used in place, so only Rust changes need this again.
$(VENV)/.built: $(VENV)/.deps $(RUST_SOURCES)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(VENV)/bin/maturin develop --release --quiet
	touch $@

$(VENV)/.bench: $(VENV)/.deps requirements-bench.txt
	$(PY) $(PIP_INSTALL) -r requirements-bench.txt
	touch $@

demo: build
	$(PY) examples/demo.py

test: test-rust test-python

# The binding crate is an extension module, which cannot link as a test binary: pytest tests it.
test-rust:
	RUSTDASK_SIM_SEEDS=200 cargo test --quiet -p rustdask-core -p rustdask-runtime -p rustdask-cluster

test-python: build
	$(PY) -m pytest tests -m "not suite or selection"
	$(PY) -m pytest --doctest-modules python/rustdask

check: lint types
	$(MAKE) test

format: $(VENV)/.deps
	cargo fmt --all
	$(PY) -m ruff check --fix $(PYTHON_CODE)
	$(PY) -m ruff format $(PYTHON_CODE)

lint: $(VENV)/.deps
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(PY) -m ruff check $(PYTHON_CODE)
	$(PY) -m ruff format --check $(PYTHON_CODE)

types: build
	$(PY) -m mypy
	$(PY) -m mypy.stubtest rustdask._core

bench: build $(VENV)/.bench
	$(PY) -m benchmarks $(BENCH_FLAGS)

suites: build $(VENV)-joblib13/.built $(VENV)-cpython/.built
	JOBLIB13_PYTHON=$(CURDIR)/$(VENV)-joblib13/bin/python CPYTHON_PYTHON=$(CURDIR)/$(VENV)-cpython/bin/python \
	  $(PY) -m pytest tests/suites -m suite

# The oldest joblib that rustdask supports.
$(VENV)-joblib13/.built: requirements-joblib13.txt $(VENV)/.built
	$(PYTHON) -m venv $(VENV)-joblib13
	$(VENV)-joblib13/bin/python $(PIP_INSTALL) -r requirements-joblib13.txt
	VIRTUAL_ENV=$(CURDIR)/$(VENV)-joblib13 $(VENV)/bin/maturin develop --release --quiet
	touch $@

# The extension that `build` makes is for any version of Python: only the way to the sources is needed there.
$(VENV)-cpython/.built: requirements-dev.txt
	@python="$(PYTHON_WITH_TESTS)"; if [ -z "$$python" ]; then \
	  echo "No interpreter has CPython's tests, so those of executors are skipped; CONTRIBUTING.md says how to get one."; \
	else \
	  $$python -m venv $(VENV)-cpython && \
	  $(VENV)-cpython/bin/python $(PIP_INSTALL) -c requirements-dev.txt pytest pytest-timeout cloudpickle joblib numpy threadpoolctl && \
	  echo $(CURDIR)/python > $$($(VENV)-cpython/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rustdask.pth && \
	  touch $@; \
	fi

sim:
	RUSTDASK_SIM_SEEDS=$(SIM_SEEDS) cargo test --release -p rustdask-core --test sim

# What is found stays in fuzz/corpus, for the next time.
fuzz:
	cargo run --quiet -p rustdask-cluster --example fuzz_seeds fuzz/seeds
	for target in messages handshake; do \
		mkdir -p fuzz/corpus/$$target && \
		cargo +nightly fuzz run --fuzz-dir fuzz $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit 1; \
	done

wheel: $(VENV)/.deps
	$(VENV)/bin/maturin build --release --out dist

# The wheel is installed rather than linked to the sources: it is what this target is to prove.
freethreaded: $(VENV)-ft/.built
	$(VENV)-ft/bin/python -c "import sys, rustdask; assert not sys._is_gil_enabled()"
	$(VENV)-ft/bin/python -m pytest tests -m "not suite" -k "$(FT_TESTS)"

$(VENV)-ft/.built: requirements-freethreaded.txt $(RUST_SOURCES) $(shell find python -name '*.py' -o -name '*.pyi')
	$(PYTHON_FT) -m venv $(VENV)-ft
	$(VENV)-ft/bin/python $(PIP_INSTALL) -r requirements-freethreaded.txt
	rm -rf target/freethreaded-wheel
	$(VENV)-ft/bin/maturin build --release --interpreter $(VENV)-ft/bin/python \
	  --target-dir target/freethreaded --out target/freethreaded-wheel
	$(VENV)-ft/bin/python $(PIP_INSTALL) --force-reinstall --no-deps target/freethreaded-wheel/*.whl
	touch $@

clean:
	rm -rf target dist $(VENV) $(VENV)-joblib13 $(VENV)-cpython $(VENV)-ft .pytest_cache .mypy_cache .ruff_cache
	rm -f python/rustdask/*.so
