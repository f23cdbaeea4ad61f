# make demo   set everything up and run the main job on real data with a real model (CPU, under ten minutes)
# make test   set up and run the tests          make test-long  those of half a minute too, as CI does
# make test-slow  all of them, those of minutes too
# make test-cluster  those with a head, several nodes and lost ones, with Ray's job server and dashboard
# make check  lint, format, types               make bench      measure, see BENCHMARKS.md
# make lock   compile the lock files anew

PYTHON ?= python3
RUN := .venv/bin/python
# two processes share the tests; one that is done takes over what the other has left
SHARED := -n 2 --dist worksteal
export TOKENIZERS_PARALLELISM := false
# without bytecode on disk every worker process compiles torch and transformers anew: ten seconds each
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-long test-slow test-cluster check bench lock
install:
	@PYTHON=$(PYTHON) requirements/install.sh cpu

demo: install
	$(RUN) -m tilth run examples/quickstart.yaml --out runs/demo

test: install
	$(RUN) -m pytest -m "not long and not slow and not gpu" $(SHARED)

test-long: install
	$(RUN) -m pytest -m "long and not slow and not gpu" $(SHARED)

test-slow: install
	$(RUN) -m pytest -m "not gpu"

test-cluster: install
	$(RUN) -m pip install -q --no-deps -r requirements/cluster.txt
	$(RUN) -m pytest -m "not gpu" tests/test_jobs_on_ray.py tests/test_node_loss.py tests/test_head_loss.py \
	  tests/test_cluster.py

check: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: install
	$(RUN) -m tests.bench

lock:
	uv pip compile pyproject.toml --extra cpu --extra dev --extra s3 --extra gcs --no-header --no-annotate \
	  --python-version 3.11 $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) -o requirements/cpu.txt --upgrade
	sed -i 's/^torch==\(.*\)+cpu/torch==\1/' requirements/cpu.txt
	uv pip compile pyproject.toml --extra gpu --extra s3 --extra gcs --no-header --no-annotate \
	  --python-version 3.12 --python-platform x86_64-manylinux_2_28 -o requirements/gpu.txt --upgrade
