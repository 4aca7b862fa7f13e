# The daily commands. All of them make what they need in .venv; nothing is expected but Python 3.11 or later.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.PHONY: demo test test-all test-browser bench gate lint clean

demo:  ## the demonstration: digests of the standard library's folders, one bar each
	@$(PYTHON) -m venv .venv/demo
	@rm -rf build
	@.venv/demo/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall .
	@cd .venv && demo/bin/python -c 'from progress_executor import IMPLEMENTATION as form; \
	print("The speedups are built." if form == "cython" else "THE SPEEDUPS WERE NOT BUILT: no C compiler? It works without.")'
	@cd .venv && demo/bin/python -m progress_executor

test:  ## the tests, on every CPython from 3.11 that is found; on the oldest and the newest in both implementations
	@$(PYTHON) tests/run.py

test-all:  ## the same, with the slow ones on the newest: faults, load, whole matrices
	@$(PYTHON) tests/run.py --all

test-browser:  ## bars in a real notebook in a real browser; skipped without Chromium
	@$(PYTHON) tests/run.py --browser

bench:  ## ours and its peers in one table; renews bench/results.json and docs/bench.svg
	@$(PYTHON) bench/compare.py

gate:  ## instructions and calls against bench/baseline.json
	@$(PYTHON) bench/gate.py

lint:  ## ruff, mypy --strict, and pyright as a user of the installed package sees it
	@$(PYTHON) -m venv .venv/lint
	@rm -rf build
	@.venv/lint/bin/python -m pip install --quiet --disable-pip-version-check '.[lint]'
	@PROGRESS_EXECUTOR_NO_EXTENSIONS=1 .venv/lint/bin/python -m pip install --quiet --disable-pip-version-check \
	--force-reinstall --no-deps .
	.venv/lint/bin/ruff check .
	.venv/lint/bin/ruff format --check .
	.venv/lint/bin/python tests/lengths.py
	.venv/lint/bin/mypy
	cd .venv && PATH="$$PWD/lint/bin:$$PATH" pyright ../tests/typed_sample.py
	cd .venv && PATH="$$PWD/lint/bin:$$PATH" pyright --verifytypes progress_executor --ignoreexternal

clean:
	rm -rf .venv build *.egg-info
