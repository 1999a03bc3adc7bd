# Each target does all its own set-up, in .venv-3.11, .venv-3.12 or .venv-3.13 by the Python in use.
#   make test PYTHON=python3.12       another Python than the newest on the path
#   make test ARGS="tests/unit -x"    arguments for the command that the target runs

PYTHON ?=
ARGS ?=
in_venv = @PYTHON="$(PYTHON)" scripts/in_venv
# Tests wait more than they work. Still more processes would each start brokers of their own.
processes = -n 3 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test soak containers coverage bench lint format types docs wheel servers screenshots lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 18

demo: ## redis-py and ResilientRedis through the same faults; then a service on Kafka and Redis
	$(in_venv) test python -m resilient_io.demo $(ARGS)

test: ## every test but the long scenes; ARGS="-n 0" in one process, for a debugger, say
	$(in_venv) test python -m pytest $(processes) $(ARGS)

soak: ## the scenes that take over 10 s each
	$(in_venv) test python -m pytest $(processes) -m soak $(ARGS)

containers: ## the scenes in containers, on the Docker engine there is (ARGS=--write-docs for the table)
	$(in_venv) test python scripts/container_scenes.py $(ARGS)

coverage: ## the tests, and which lines and branches they miss
	$(in_venv) test coverage run -m pytest $(ARGS)
	$(in_venv) test coverage report

bench: ## measure against the other clients of Redis and Kafka (ARGS=redis or kafka for one of them)
	$(in_venv) test,bench python -m benchmarks $(ARGS)

lint: ## ruff, and the checks of generated files
	$(in_venv) test,lint ruff check
	$(in_venv) test,lint ruff format --check
	$(in_venv) test,lint python scripts/check_locks.py
	$(in_venv) test,lint python scripts/command_table.py --check

format: ## mend what ruff can mend
	$(in_venv) test,lint ruff check --fix
	$(in_venv) test,lint ruff format

types: ## mypy --strict and pyright, on the package and on the typing tests
	$(in_venv) test,lint mypy
	$(in_venv) test,lint sh -c 'pyright --pythonpath "$$(command -v python)"'

docs: ## build the docs site into site/; broken links and references are errors
	$(in_venv) test,docs python -m zensical build --strict --clean

wheel: ## build the wheel, install it into a fresh environment, import every public name
	$(in_venv) test python scripts/check_wheel.py

servers: ## install the real Redis and Chromium (Debian, Ubuntu), fetch Apache Kafka; none is left running
	@scripts/install_servers.sh
	@scripts/install_browser.sh

screenshots: ## make the pictures of docs/images anew: a doctor's run, the status page; from real runs
	$(in_venv) test python -m scripts.terminal_pictures
	$(in_venv) test python -m scripts.screenshots $(ARGS)

lock: ## rewrite requirements/*.txt (ARGS=--upgrade takes the newest of everything)
	$(in_venv) lock scripts/lock.sh $(ARGS)

clean: ## remove everything that the other targets made
	@scripts/docker_engine.sh stop
	rm -rf .venv-* .servers .cache dist site .pytest_cache .mypy_cache .ruff_cache .coverage*
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +
