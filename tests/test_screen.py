"""Bars on a real screen: the scenarios of `tests.screen`, and stock tqdm in the same, which the check must find wrong."""

import os
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("there is no pseudo-terminal", allow_module_level=True)

from .conftest import POOLS, until
from .screen import LEAVES, TWISTS, Scenario, check, run, scenarios
from .terminal import Terminal


def _once_quick():
    """All scenarios; of each kind one that is not slow."""
    quick = {(twist, leave): None for twist in ("", *TWISTS) for leave in LEAVES}
    for scenario in scenarios():
        key = scenario.twist, scenario.leave
        enough = scenario.bars == 16 and scenario.at_once == (3 if scenario.leave else 16) and key in quick
        if enough:
            del quick[key]
        yield pytest.param(scenario, id=str(scenario), marks=() if enough else pytest.mark.slow)


@pytest.mark.parametrize("scenario", list(_once_quick()))
def test_every_screen_is_right(scenario):
    output, status = run(scenario)
    screens = list(check(scenario, output))
    assert status == 0
    assert len(screens) > scenario.bars
    for problem, lines in screens:
        assert problem is None, "\n".join(lines)


@pytest.mark.parametrize("leave", [True, False])
def test_the_check_finds_stock_tqdm_wrong(leave):
    # All at once: where each bar comes when another one has gone, stock tqdm is sometimes lucky.
    scenario = Scenario(at_once=16, leave=leave, stock=True)
    output, status = run(scenario)
    problems = [problem for problem, _ in check(scenario, output)]
    assert status == 0
    assert sum(map(bool, problems)) > len(problems) / 2


STALLED = """
import sys, threading, time
from pathlib import Path
from tests import jobs
from tests.conftest import make_executor

kind, folder = sys.argv[1:]
gate, told = Path(folder, "gate"), [time.monotonic()]

def open_the_gate_when_nobody_is_told_any_more():
    while time.monotonic() < told[0] + 1:
        time.sleep(0.1)
    gate.touch()

with make_executor(kind, 16) as executor:
    futures = [executor.submit(jobs.chatter, str(gate), str(Path(folder, f"{n}.finished"))) for n in range(16)]
    for n, future in enumerate(futures):
        future.add_progress_callback(lambda old, new: told.__setitem__(0, time.monotonic()))
        future.add_tqdm_callback(init_kwargs={"desc": str(n)})
    threading.Thread(target=open_the_gate_when_nobody_is_told_any_more).start()
    for future in futures:
        future.result()
Path(folder, "end").touch()
"""


@pytest.mark.parametrize("kind", POOLS)
def test_a_terminal_that_takes_no_more_does_not_stop_tasks(kind, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    argv = [sys.executable, "-c", STALLED, kind, str(tmp_path)]
    with Terminal(argv, env=environment, cwd=os.getcwd()) as terminal:
        until(lambda: len(list(tmp_path.glob("*.finished"))) == 16, "the end of all tasks")
        assert not (tmp_path / "end").exists(), "the terminal took everything"
        assert terminal.finish() == 0
        assert (tmp_path / "end").exists()
        assert [line.split(":")[1][:5] for line in terminal.lines[:16]] == [" 100%"] * 16
