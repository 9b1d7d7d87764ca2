# What a newcomer types: `make demo`, `make test`. Everything is installed into .venv, nothing else is touched.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-compile
# The first interpreter that Suture runs on.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$name && break; done)
# On Linux the usual index gives a PyTorch with CUDA, of several GB. Where no GPU is, it comes from PyTorch's index of wheels
# without CUDA, if that can be reached.
CPU_WHEELS ?= $(shell sed -n 's/^\# Wheels without CUDA: //p' constraints.txt)
CAN_OPEN = import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)
TORCH_INDEX = $(shell test "$$(uname -s)" = Linux && ! nvidia-smi -L >/dev/null 2>&1 && \
	$(PYTHON) -c '$(CAN_OPEN)' $(CPU_WHEELS)/torch/ 2>/dev/null && echo --index-url $(CPU_WHEELS))

.PHONY: help demo up test test-quick images lock kernels faults lint reference docs licences format clean
.DEFAULT_GOAL := help

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1	/' | expand -t 16

demo: $(INSTALLED)  ## play the whole story on this machine: two parties, two sites, one stitched ensemble
	@$(BIN)/suture demo

up: $(INSTALLED)  ## keep a hub and two sites running on this machine, and print an address to open
	@$(BIN)/suture up

# Three at once on two cores: much of the time a test waits for processes that it started.
test: $(INSTALLED)  ## run all tests
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# What is soon done and starts no server: formats, rules, commands, and the hub's logic on SQLite.
QUICK := tests/test_*.py tests/client \
	$(foreach name,access audit jobs jobs_again jobs_refused keys models parties publishing quota search states storage tasks waiting,tests/service/test_$(name).py) \
	$(foreach name,bootstrap card data_splits data_table familiarity format layout matching metadata moments points report report_page report_plots report_words select solve,tests/stitching/test_$(name).py) \
	$(foreach name,config data folder inbox ledger outbox policy signed suppression waiting,tests/worker/test_$(name).py)
NOT_QUICK := $(foreach name,client/test_environment client/test_network client/test_login_oidc client/test_processes test_leftovers,--ignore tests/$(name).py)

test-quick: $(INSTALLED)  ## run the tests that are soon done, without servers
	@$(BIN)/python -m pytest -n 2 -m "not flow and not fault and not server" $(QUICK) $(NOT_QUICK)

images: $(INSTALLED)  ## replay what the images install, without Docker, start hub and site from it; the demo from the wheel
	@$(BIN)/python .ci/images.py

lock: $(INSTALLED)  ## resolve anew which versions both images install
	@$(BIN)/python .ci/lock.py

# What a processor decides: which kernels torch, oneDNN and MKL choose, and how many threads share the work.
kernels: $(INSTALLED)  ## run the tests with numbers as other processors would, with one thread and with two
	@for as in "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 OMP_NUM_THREADS=1" \
		"ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=2"; do \
		echo "$$as"; env $$as $(BIN)/python -m pytest -n 2 --dist loadfile -q tests/stitching || exit 1; \
	done

faults: $(INSTALLED)  ## break everything at every stage of a job, and write what came of it to docs/faults.md
	@$(BIN)/python -m tests.fault --jobs 2 --write docs/faults.md

lint: $(INSTALLED)  ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

reference: $(INSTALLED)  ## write the pages that are made from the code: error codes, Python API
	@$(BIN)/python .ci/reference.py
	@$(BIN)/python -m tests.cli_json

pictures: $(INSTALLED)  ## take the pictures anew that README.md shows; needs Chromium
	@$(BIN)/python .ci/pictures.py

docs: $(INSTALLED)  ## build the documentation as a site that needs no network
	@$(BIN)/python .ci/site.py

licences: $(INSTALLED)  ## list the licences of all that an installed Suture needs, and check that they fit
	@$(BIN)/python .ci/licences.py

format: $(INSTALLED)  ## put the code into its agreed form
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:  ## remove what was installed and what the demo left
	rm -rf $(VENV) .suture .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch comes first and by itself, see constraints.txt. All cores compile what was installed; pip would use one, and some
# packages carry files that no Python compiles.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Suture needs Python 3.11, 3.12 or 3.13 on the PATH"; exit 1; }
	@echo "Installing Suture into $(VENV), once; this takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "  1/3  PyTorch"
	@$(PIP) --quiet $(TORCH_INDEX) "$$(sed -n '/^torch==/p' constraints.txt)"
	@echo "  2/3  Suture and what else it uses"
	@$(PIP) --quiet --constraint constraints.txt --editable '.[service,worker,onnx,mlflow,demo,dev]'
	@echo "  3/3  bytecode"
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@
