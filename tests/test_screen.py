"""Bars on a real screen: the scenarios of `tests.screen`, and stock tqdm in the same, which the check must find wrong."""

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("there is no pseudo-terminal", allow_module_level=True)

from .screen import Scenario, check, run, scenarios


@pytest.mark.parametrize("scenario", list(scenarios()), ids=str)
def test_every_screen_is_right(scenario):
    output, status = run(scenario)
    screens = list(check(scenario, output))
    assert status == 0
    assert len(screens) > scenario.bars
    for problem, lines in screens:
        assert problem is None, "\n".join(lines)


@pytest.mark.parametrize("leave", [True, False])
def test_the_check_finds_stock_tqdm_wrong(leave):
    scenario = Scenario(leave=leave, stock=True)
    output, _ = run(scenario)
    assert any(problem for problem, _ in check(scenario, output))
