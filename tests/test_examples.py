"""The programs in the examples folder do what their first lines promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import progress_executor

from .conftest import DEADLINE, LOCAL
from .terminal import Terminal

EXAMPLES = Path(__file__).parents[1] / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(progress_executor.__file__).parents[1])}
VALUES = [30, 40, 35, 60, 20, 50, 38, 27]

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not next to the tests")


def watch_many(*arguments):
    return [sys.executable, "-W", "error", str(EXAMPLES / "watch_many.py"), "--scale", "0.02", *arguments]


def results(*arguments):
    done = subprocess.run(watch_many(*arguments), capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", LOCAL)
def test_watch_many_prints_the_value_of_each_task(kind):
    assert results(kind) == [f"task {i} of {value}: {value}" for i, value in enumerate(VALUES)]


@pytest.mark.parametrize("kind", LOCAL)
def test_watch_many_with_cancel_reports_the_first_task_as_cancelled(kind):
    first, *others = results(kind, "--cancel")
    assert first == "task 0 of 30: cancelled"
    assert len(others) == len(VALUES) - 1
    for i, (line, value) in enumerate(zip(others, VALUES[1:], strict=True), start=1):
        assert line in (f"task {i} of {value}: {value}", f"task {i} of {value}: cancelled")


@pytest.mark.parametrize("kind", LOCAL)
def test_watch_many_draws_live_bars_and_leaves_one_per_task_with_the_results_below(kind):
    with Terminal(watch_many(kind), env=ENVIRONMENT) as screen:
        screen.wait_for(lambda screen: re.search(r"^task \d: +[1-9]\d?%\|.*running", screen.text, re.MULTILINE))
        assert screen.finish() == 0
    bars, lines = screen.lines[: len(VALUES)], screen.lines[len(VALUES) : 2 * len(VALUES)]
    assert sorted(re.sub(r"\|.*\| (.*) \[.*, (\w+)\]$", r" \1 \2", bar) for bar in bars) == [
        f"task {i}: 100% {2 * value}/{2 * value} done" for i, value in enumerate(VALUES)
    ], screen.text
    assert lines == [f"task {i} of {value}: {value}" for i, value in enumerate(VALUES)], screen.text
