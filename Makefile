.DEFAULT_GOAL := help
.PHONY: help install demo test check lock clean

RUN = .venv/bin/python pipelines/run.py --local

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' Makefile

install: ## .venv, from requirements.lock; PYTHON= and TORCH_INDEX= as scripts/install says
	@scripts/install

demo: install ## the whole pipeline on this machine, on scikit-learn's handwritten digits
	@$(RUN) sample sample/digits
	@$(RUN) run --config configs/demo.yaml --data sample/digits

test: ## lint, types and all tests; ARGS= go to pytest
	@scripts/test $(ARGS)

check: ## lint and types
	@scripts/check

lock: ## resolve requirements.lock anew, from setup.py and constraints.txt
	@scripts/lock

clean: ## stop the local service and remove all that these commands made: .venv, executions, models, sample, caches
	@[ ! -f .venv/installed ] || $(RUN) down
	rm -rf .venv .sagemaker sample build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
