# make demo: draw people, train, evaluate, look.   make test: the whole test suite.   Both install what they need.
PYTHON ?= python3
VENV ?= .venv
WHEELS ?=
TORCH ?=
STUDIES ?=
# The tests run in a process a core, at most four: each takes up to 3 GB.
WORKERS ?= -n auto --maxprocesses 4
# Threads that sleep while they wait for each other leave their core to other processes (benchmarks/cpu.py).
export OMP_WAIT_POLICY ?= passive
RUN = PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(VENV)/bin/python

# A few training steps from the command line, the same figures from the checkpoint alone, and a search with it.
SMOKE = projects/Cerberus/train_net.py --config-file configs/Market1501/cerberus_demo.yml

.PHONY: help install demo compare clothes reproduce test test-slow budget lint docs docs-serve smoke bench clean

help:
	@echo "make demo     draw a small data set, train cerberus_plus on the CPU, evaluate, write a picture: runs/demo"
	@echo "make compare  IDE, ARN, APR, BoT, Cerberus and cerberus_plus trained alike on these people: runs/compare"
	@echo "make clothes  people who change their clothes: BoT, Cerberus and CSSC trained alike, one table: runs/clothes"
	@echo "make reproduce  tables of the paper, small, on the demo's people: three seeds each, one page: runs/reproduction;"
	@echo "              STUDIES=\"plus unseen\" for others than parts and margins"
	@echo "make test     the test suite"
	@echo "make test-slow  the tests that make test leaves out for time"
	@echo "make budget   count what a training step asks of a GPU, and write the table that the tests compare"
	@echo "make lint     ruff and mypy"
	@echo "make docs     build the documentation site in runs/site; a broken link or reference is an error"
	@echo "make docs-serve  build it, and serve it on http://127.0.0.1:8000 while the pages are edited"
	@echo "make smoke    a few training steps from the command line, and the evaluation of their checkpoint, a search"
	@echo "make bench    every benchmark, small on a CPU: tables and JSON in runs/benchmarks"
	@echo "make gpu      checks and figures of a GPU in at most eight minutes, beside the aims: runs/gpu; WHEELS=folder"
	@echo "make install  only the environment in $(VENV); WHEELS=folder without a package index, TORCH='...' another torch"
	@echo "make clean    remove the environment (before installing it differently), runs and logs"

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

# The theme prints an announcement of a later MkDocs, which the range in setup.py leaves out.
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

# Of the requirements only those at run time, and pytest: a machine with a GPU often reaches no package index.
$(VENV)/.gpu: setup.py tools/install.py
	test -e $(VENV)/.installed || $(PYTHON) tools/install.py $(VENV) --minimal $(if $(WHEELS),--wheels $(WHEELS))
	@touch $@

.PHONY: gpu
gpu: $(VENV)/.gpu
	$(RUN) tools/gpu_check.py

clean:
	rm -rf $(VENV) runs logs
