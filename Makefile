# Every target sets up what it needs: the virtual environment of the Python in use (.venv-3.11,
# .venv-3.12 or .venv-3.13), and Apache Kafka where Java 17 and Maven are installed.
#   make test PYTHON=python3.12       use another Python than the newest on the PATH
#   make test ARGS="tests/unit -x"    arguments for the command of the target

PYTHON ?=
ARGS ?=
in_venv = @PYTHON="$(PYTHON)" scripts/in_venv
kafka = @scripts/fetch_kafka.sh --if-possible
# Tests mostly wait. More processes would each start brokers of their own.
processes = -n 3 --dist worksteal
# What can depend on the version of Python: unit and wire tests, and tests marked `versions`.
versions = tests/unit tests/wire tests/live/lifecycle \
	$$(grep -rlE --include="*.py" "cancel_everywhere|mark\.versions" tests/live)

.DEFAULT_GOAL := help
.PHONY: help demo test test-versions soak containers simulate coverage bench bench-link \
	bench-redelivery works-with lint format types docs \
	structure wheel servers screenshots lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

demo: ## redis-py and ResilientRedis under the same faults, then a service, then Sentinel failovers
	$(kafka)
	$(in_venv) test python -m demo $(ARGS)

test: ## all tests except those of `soak` and `containers`; ARGS="-n 0" for a debugger
	$(kafka)
	$(in_venv) test python -m pytest $(processes) $(ARGS)

test-versions: ## the tests that can depend on the version of Python
	$(kafka)
	$(in_venv) test python -m pytest $(processes) $(versions) $(ARGS)

soak: ## the tests that take over 10 s each
	$(kafka)
	$(in_venv) test python -m pytest -n 6 --dist load --maxschedchunk 1 -m soak $(ARGS)

containers: ## the tests in containers; needs a Docker engine (ARGS=--write-docs updates the table)
	$(in_venv) test python scripts/container_scenes.py $(ARGS)

simulate: ## search thousands of simulated schedules for defects (ARGS="--replay 17" shows one)
	$(in_venv) test python -m tests.simulation $(ARGS)

coverage: ## the tests, and the lines and branches that they do not reach
	$(kafka)
	$(in_venv) test coverage run -m pytest $(ARGS)
	$(in_venv) test coverage report

bench: ## compare with other Redis and Kafka clients (ARGS=redis or kafka for one of them)
	$(kafka)
	$(in_venv) test,bench python -m benchmarks $(ARGS)

bench-link: ## how soon a cut network is noticed, in network namespaces (needs root)
	$(kafka)
	$(in_venv) test python -m benchmarks.link $(ARGS)

bench-redelivery: ## how many Kafka records are delivered again after a kill, a close, a rebalance
	$(kafka)
	$(in_venv) test python -m benchmarks.redelivery $(ARGS)

works-with: ## run other libraries' tests on redis-py and on ResilientRedis (ARGS="arq saq" for some)
	$(in_venv) test,lock python -m tests.works_with $(ARGS)

lint: ## ruff, the wording, and the generated files
	$(in_venv) test,lint ruff check
	$(in_venv) test,lint ruff format --check
	$(in_venv) test,lint python scripts/check_wording.py
	$(in_venv) test,lint python scripts/check_locks.py
	$(in_venv) test,lint python scripts/command_table.py --check

format: ## fix what ruff can fix
	$(in_venv) test,lint ruff check --fix
	$(in_venv) test,lint ruff format

types: ## mypy --strict and pyright, on the package and on the typing tests
	$(in_venv) test,lint mypy
	$(in_venv) test,lint sh -c 'pyright --pythonpath "$$(command -v python)"'

docs: ## build the docs site into site/; broken links and references are errors
	$(in_venv) test,docs python -m zensical build --strict --clean

structure: ## the size of the package, and the files that a call passes through
	$(in_venv) test python scripts/structure.py $(ARGS)

wheel: ## build the wheel, install it into a new environment, import every public name
	$(in_venv) test python scripts/check_wheel.py

servers: ## install Redis, Chromium, Java and Maven (Debian, Ubuntu), and download Apache Kafka
	@scripts/install_servers.sh
	@scripts/install_browser.sh

screenshots: ## update the pictures in docs/images, from real runs
	$(in_venv) test python -m scripts.terminal_pictures
	$(in_venv) test python -m scripts.screenshots $(ARGS)

lock: ## update requirements/*.txt (ARGS=--upgrade for the newest versions)
	$(in_venv) lock scripts/lock.sh $(ARGS)

clean: ## remove everything that the other targets created
	@scripts/docker_engine.sh stop
	rm -rf .venv-* .servers .cache dist site .pytest_cache .mypy_cache .ruff_cache .coverage*
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +
