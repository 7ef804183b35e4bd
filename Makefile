# make demo: draw people, train, evaluate, look.   make test: the whole test suite.   Both install what they need.
PYTHON ?= python3
VENV ?= .venv
WHEELS ?=
TORCH ?=
RUN = PYTHONPATH=. $(VENV)/bin/python

.PHONY: help install demo test lint clean

help:
	@echo "make demo     draw a small data set, train Cerberus on the CPU, evaluate, write a picture: runs/demo"
	@echo "make test     the test suite"
	@echo "make lint     ruff"
	@echo "make install  only the environment in $(VENV); WHEELS=folder without a package index, TORCH='...' another torch"

$(VENV)/.installed: setup.py tools/install.py
	$(PYTHON) tools/install.py $(VENV) $(if $(WHEELS),--wheels $(WHEELS)) $(if $(TORCH),--torch $(TORCH))
	@touch $@

install: $(VENV)/.installed

demo: install
	$(RUN) projects/Cerberus/demo.py

test: install
	$(RUN) -m pytest

lint: install
	$(RUN) -m ruff check .

clean:
	rm -rf $(VENV) runs logs
