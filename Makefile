# `make` alone lists the targets. Each does its own set-up: a virtual environment in .venv, filled again only when
# pyproject.toml or constraints.txt changed. MODEL=none leaves torch and the local model out.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON := $(BIN)/python
CODE := $(wildcard manage.py annotation_server annotation_workers trainer fixtures tests benchmarks)

# One stamp per extra: `make test` after `make run` adds only what is missing.
SERVER := .venv/.has-server
DEV := .venv/.has-dev
TRAINER := $(if $(filter none,$(MODEL)),,.venv/.has-trainer)
PEER := $(if $(filter none,$(MODEL)),,.venv/.has-peer)

# Test processes. A file's tests stay together: they share servers and browsers.
JOBS ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help run test demo bench soak bench-scale lint messages

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

run: $(SERVER) $(TRAINER)  ## serve Winnow at http://127.0.0.1:8000 (PORT), state under var/ (WINNOW_HOME); Ctrl-C stops it
	@exec $(PYTHON) -m annotation_server.launcher

test: $(SERVER) $(TRAINER) $(PEER) $(DEV)  ## all tests under a minute each, in JOBS processes; ARGS="-k queue" for a part
	$(PYTHON) -m pytest -m "not soak" --numprocesses $(JOBS) --dist loadfile $(ARGS)

demo: $(SERVER) $(TRAINER)  ## the whole loop on drawn scenes in a throw-away home, ending with one table
	@exec $(PYTHON) -m benchmarks.demo

bench: $(SERVER) $(TRAINER) $(PEER) $(DEV)  ## the measured claims, one JSON object per line; ONLY=workbench|runs|trainer for a part
	@exec $(PYTHON) -m benchmarks $(if $(ONLY),--only $(ONLY))

soak: $(SERVER) $(TRAINER) $(PEER) $(DEV)  ## every test of more than a minute: kills, load
	$(PYTHON) -m pytest -m soak $(ARGS)

bench-scale: $(SERVER) $(TRAINER) $(PEER) $(DEV)  ## the measurements at 128,000 samples
	@exec $(PYTHON) -m benchmarks --scale

# Reading the settings makes a secret key: not in the home of a server that may be running.
lint: export WINNOW_HOME := $(CURDIR)/.venv/lint-home
lint: $(SERVER) .venv/.has-trainer .venv/.has-peer $(DEV)  ## ruff, mypy, import contracts, missing migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports
	$(PYTHON) manage.py makemigrations --check --dry-run

# GNU gettext does the work (on Debian: gettext). Run it, fill in what is empty or fuzzy in the .po, run it again.
messages: $(SERVER)  ## what the pages say, into annotation_server/locale/ for translation, and compiled
	cd annotation_server && ../$(PYTHON) ../manage.py makemessages --locale zh_Hans --no-wrap --no-location
	cd annotation_server && ../$(PYTHON) ../manage.py compilemessages

# A Python of the right age that can make a virtual environment; names on PATH may be wrappers that do not start.
.venv/bin/python:
	@for python in python3.13 python3.12 python3.11 python3; do \
	  if "$$python" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	    echo "Making .venv with $$("$$python" --version)"; exec "$$python" -m venv .venv; \
	  fi; \
	done; \
	echo "Winnow needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian: python3-venv); none was found on PATH." >&2; exit 1

.venv/.has-%: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing what '$*' needs into .venv"
	@$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[$*]'
	@touch $@
