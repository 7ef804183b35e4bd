# make demo: create synthetic people, train, evaluate.   make test: the test suite.   Both run `make install` first.
PYTHON ?= python3
VENV ?= .venv
WHEELS ?=
TORCH ?=
STUDIES ?=
# One test process per core, at most four: each takes up to 3 GB.
WORKERS ?= -n auto --maxprocesses 4
# Waiting threads sleep, so that other processes can use their core (benchmarks/cpu.py).
export OMP_WAIT_POLICY ?= passive
RUN = PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(VENV)/bin/python

# A few training steps from the command line, the same metrics from the checkpoint, and a search with it.
SMOKE = projects/Cerberus/train_net.py --config-file configs/Market1501/cerberus_demo.yml

.PHONY: help install demo compare clothes reproduce test test-slow budget lint docs docs-serve smoke bench clean

help:
	@echo "make demo     create a small synthetic dataset, train cerberus_plus on the CPU, evaluate, plot results: runs/demo"
	@echo "make compare  train IDE, ARN, APR, BoT, Cerberus and cerberus_plus on the same data, one table: runs/compare"
	@echo "make clothes  cloth-changing reID: train BoT, Cerberus and CSSC on the same data, one table: runs/clothes"
	@echo "make reproduce  tables of the paper on the demo's data, three seeds each, one report: runs/reproduction;"
	@echo "              STUDIES=\"plus unseen\" instead of parts and margins"
	@echo "make test     the fast tests"
	@echo "make test-slow  the slow tests"
	@echo "make budget   count the GPU operations of a training step, and write the table that the tests compare"
	@echo "make lint     ruff and mypy"
	@echo "make docs     build the documentation site in runs/docs; a broken link or reference is an error"
	@echo "make docs-serve  serve it on http://127.0.0.1:8000, rebuilt at every change of a page"
	@echo "make smoke    a few training steps from the command line, evaluation of the checkpoint, a search"
	@echo "make bench    every benchmark, small on a CPU: tables and JSON in runs/benchmarks"
	@echo "make gpu      check and measure a GPU in at most eight minutes, compared with the targets: runs/gpu; WHEELS=folder"
	@echo "make install  create the environment in $(VENV); WHEELS=folder: without a package index; TORCH='...': another torch"
	@echo "make clean    remove the environment, runs and logs"

$(VENV)/.installed: setup.py tools/install.py
	$(PYTHON) tools/install.py $(VENV) $(if $(WHEELS),--wheels $(WHEELS)) $(if $(TORCH),--torch $(TORCH))
	@touch $@

install: $(VENV)/.installed

demo: install
	$(RUN) projects/Cerberus/demo.py

compare: install
	$(RUN) projects/Cerberus/compare.py

clothes: install
	$(RUN) projects/Cerberus/clothes.py

reproduce: install
	$(RUN) projects/Cerberus/reproduce.py $(STUDIES)

test: install
	$(RUN) -m pytest $(WORKERS)

test-slow: install
	$(RUN) -m pytest -m slow $(WORKERS)

budget: install
	PYTHONPATH=tests $(VENV)/bin/python -m gpu_rehearsal -m gpu_rehearsal.budget --write

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# Hide the theme's announcement of MkDocs 2, which the range in setup.py excludes.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1

docs: install
	$(RUN) -m mkdocs build --strict

docs-serve: install
	$(RUN) -m mkdocs serve

smoke: install
	rm -rf runs/smoke
	$(RUN) -m cerberus_plugin.synthetic --output runs/smoke/data --train-ids 32 --test-ids 12 --images-per-id 6 \
		--distractors 4 --junk 4
	FASTREID_DATASETS=runs/smoke/data $(RUN) $(SMOKE) OUTPUT_DIR runs/smoke SOLVER.MAX_EPOCH 4 \
		SOLVER.WARMUP_ITERS 3 TEST.UNTRAINED_FLOOR False
	FASTREID_DATASETS=runs/smoke/data $(RUN) $(SMOKE) --eval-only OUTPUT_DIR runs/smoke \
		MODEL.WEIGHTS runs/smoke/model_final.pth
	cmp runs/smoke/results.txt runs/smoke/evaluation/results.txt
	$(VENV)/bin/cerberus index --run runs/smoke --images runs/smoke/data/Market-1501-v15.09.15/query --out runs/smoke/gallery
	$(VENV)/bin/cerberus search runs/smoke/gallery gender=female --top 3

bench: install
	$(RUN) benchmarks/run.py

# Only the requirements at run time, and pytest: machines with a GPU often have no access to a package index.
$(VENV)/.gpu: setup.py tools/install.py
	test -e $(VENV)/.installed || $(PYTHON) tools/install.py $(VENV) --minimal $(if $(WHEELS),--wheels $(WHEELS))
	@touch $@

.PHONY: gpu
gpu: $(VENV)/.gpu
	$(RUN) tools/gpu_check.py

clean:
	rm -rf $(VENV) runs logs
