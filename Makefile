# `make demo` and `make test` do all the set-up on a fresh Debian or Ubuntu machine.
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
.PHONY: help install demo test check power campaign matrix explore soak fuzz bench regress reproduce claims docs lab package package-test clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

install:         ## packages and .venv (needs root or sudo)
	@scripts/install

test: install check   ## the tests, three at a time, with progress (some 25 minutes)
	@scripts/install --reproduce
	$(PYTHON) -m pytest -n 3 --max-worker-restart 0 --durations 20

check: install   ## linters, types and the direction of imports, as CI runs them
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

power: install   ## power failures replayed at every point of a recorded log (POWER="--points N --seed N")
	$(PYTHON) -m tests.crash.power $(POWER)

campaign: install  ## random worlds under random faults, on the virtual clock (SEEDS=20; CAMPAIGN="--first 21 --jobs 4")
	$(PYTHON) -m tests.campaign $(if $(SEEDS),--seeds $(SEEDS)) $(CAMPAIGN)

matrix: install  ## a VM's move broken at every place in every way ; campaigns find known bugs (some 14 minutes)
	$(PYTHON) -m pytest -m "matrix or not matrix" tests/migrate/test_interruptions.py tests/vm/test_freeze.py tests/lab/test_campaign.py

explore: install ## the handover in every order of what may happen, larger worlds (EXPLORE="--more 1 kill"); minutes to hours
	@scripts/install --reproduce
	$(PYTHON) -m tests.explore $(if $(EXPLORE),$(EXPLORE),--more 1)

soak: install    ## killed at random moments, again and again, also at the switch (ROUNDS=1000 MOVES=100), or watched if it grows (TIME=3600)
	$(PYTHON) -m tests.crash.$(if $(TIME),flat --time $(TIME),kill $(if $(ROUNDS),--rounds $(ROUNDS))) $(if $(SEED),--seed $(SEED))
	$(if $(TIME),,$(PYTHON) -m tests.crash.moves $(if $(MOVES),--moves $(MOVES)) $(if $(SEED),--seed $(SEED)))

fuzz: install    ## bad input made up, TIME=600 seconds a target (TARGET=... one of them); corpus in .cache/fuzz
	@scripts/install --reproduce
	$(PYTHON) -m tests.fuzz $(TARGET) $(if $(TIME),--time $(TIME))

demo: install    ## relocates a disk across an emulated WAN; table, figures and page in out/demo (VM=qemu: a real VM)
	$(PYTHON) -m experiments.demo $(if $(VM),--vm $(VM))

bench: install   ## local path, size and WAN against the peers (BENCH=--quick: in minutes); out/bench
	$(PYTHON) -m experiments.bench $(BENCH)

regress: install  ## worse than the committed baseline? On the virtual clock: exact (REGRESS="accept", "bisect A B")
	$(PYTHON) -m experiments.regress $(REGRESS)

reproduce: install  ## all runs, tables, figures (QUICK=1: in 40 minutes; OUT=DIR SEEDS=N RUNS=ARCHIVE)
	@scripts/install --reproduce
	$(PYTHON) -m experiments.reproduce $(if $(QUICK),--quick) $(if $(OUT),--out $(OUT)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(RUNS),--runs $(RUNS))

claims: install  ## what is claimed, checked by small runs (some 15 minutes): claim, published, measured, verdict
	@scripts/install --reproduce
	$(PYTHON) -m experiments.claims

docs: install    ## the documentation as a site: out/site/index.html
	@scripts/install --reproduce
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

lab: install     ## a shell in the lab
	$(PYTHON) -m testbed.lab shell

package: install ## the wheel, the source archive and the Debian package, in out/packages
	@scripts/install --reproduce
	scripts/package out/packages

package-test: install ## the Debian package installed, used and removed in clean roots (some minutes)
	@scripts/install --reproduce
	$(PYTHON) -m pytest -m clean_root tests/packages

clean:           ## what was generated here (not the lab's cached image)
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
