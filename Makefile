# `make demo` and `make test` do everything, set-up included. The steps stand in dev.py, which runs without make as well.
# Another Python: make demo PYTHON=python3.12    Arguments: make test ARGS="-k norm"
PYTHON ?= python3

.PHONY: help demo test lab docs export lock
help:
	@$(PYTHON) dev.py --help
demo test lab docs export lock:
	@$(PYTHON) dev.py $@ $(ARGS)
