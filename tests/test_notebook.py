"""Bars of tqdm.notebook in a real notebook, in a real browser. Not run unless asked for: `make test-browser`."""

import itertools
import textwrap

import pytest

from .conftest import open_gate
from .run import chromium

pytestmark = pytest.mark.browser

BLOCKING = """
    for future in futures.values():
        with contextlib.suppress(ValueError, CancelledError):
            future.result()
"""

# A TaskGroup would cancel the others when one fails.
AWAITING = """
    async with asyncio.TaskGroup() as group:
        for name in futures.keys() - {"fails"}:
            group.create_task(futures[name])
    with contextlib.suppress(ValueError):
        await futures.get("fails", everything)
"""

IMPORTS = """
import asyncio, contextlib, multiprocessing
from concurrent.futures import CancelledError
from tqdm.auto import tqdm as tqdm_auto
from tqdm.notebook import tqdm
from progress_executor import ProcessPoolProgressExecutor, ProgressGroup
from tests import jobs
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    for module in ("ipywidgets", "jupyterlab", "playwright"):
        pytest.importorskip(module)
    path = chromium()
    if path is None:
        pytest.skip("Chromium was not found")
    from .lab import Lab

    with Lab(tmp_path_factory.mktemp("lab"), path) as lab:
        yield lab


STEPS = {
    "known": [(3, 10), (10, 10)],
    "late": [(2, None), (4, 8), (6, None), (8, 8)],
    "grows": [(2, 4), (4, 16), (16, 16)],
    "fails": [(5, 10), (10, 10)],
    "cancelled": [(1, 10), (6, 10), (7, 10)],
    "short": [(1, 10), (3, 10)],
    "vanishes": [(1, 2), (1, 2)],
    "unknown": [(1, None), (7, None)],
}
CELL = f"""
with ProcessPoolProgressExecutor(3) as executor:
    futures = {{
        name: executor.submit(jobs.follow, name == "fails", steps, folder + "/" + name)
        for name, steps in {STEPS}.items()
    }}
    for name, future in futures.items():
        kwargs = {{"desc": name, "leave": name != "vanishes"}}
        if name == "unknown":
            future.add_tqdm_callback(tqdm_auto, kwargs, triggers="running")
        else:
            future.add_tqdm_callback(tqdm, kwargs)
    futures["cancelled"].add_progress_callback(lambda old, new: new["n"] == 6 and futures["cancelled"].cancel())
    everything = ProgressGroup(futures.values())
    everything.add_tqdm_callback(tqdm, {{"desc": "all"}})
"""


@pytest.mark.parametrize("waiting", [BLOCKING, AWAITING], ids=["blocking", "awaiting"])
def test_bars_of_a_process_pool_are_live_and_right_at_the_end(waiting, lab, tmp_path):
    def go_on(*tasks_and_steps):
        for name in tasks_and_steps:
            open_gate(tmp_path / name)

    with lab.notebook(f"{IMPORTS}folder = {str(tmp_path)!r}\n{CELL}{waiting}") as notebook:
        notebook.run(0)
        untouched = ["fails", "cancelled", "short", "vanishes"]
        notebook.wait_for_bars(
            known="3/10 running, 30% blue",
            late="2/? running, 100% info",
            grows="2/4 running, 50% blue",
            all="5/56 3 running, 5 pending, 9% blue",
            untouched=untouched,
        )
        go_on("late0", "grows0")
        notebook.wait_for_bars(
            known="3/10 running, 30% blue",
            late="4/8 running, 50% blue",
            grows="4/16 running, 25% blue",
            all="11/91 3 running, 5 pending, 12% blue",
            untouched=untouched,
        )
        go_on("late1")
        notebook.wait_for(lambda bars: bars["late"] == "6/? running, 100% info")
        go_on("known0", "late2", "grows1")
        ended = {"known": "10/10 done, 100% green", "late": "8/8 done, 100% green", "grows": "16/16 done, 100% green"}
        notebook.wait_for_bars(
            fails="5/10 running, 50% blue",
            cancelled="1/10 running, 10% blue",
            short="1/10 running, 10% blue",
            untouched=["vanishes"],
            all="41/85 3 running, 2 pending, 3 done, 48% blue",
            **ended,
        )
        go_on("fails0", "cancelled0", "short0")
        ended |= {"fails": "10/10 failed, 100% red", "cancelled": "6/10 cancelled, 60% red", "short": "3/10 done, 30% green"}
        notebook.wait_for_bars(
            vanishes="1/2 running, 50% blue",
            unknown="1/? running, 100% info",
            all="54/75 2 running, 4 done, 1 failed, 1 cancelled, 72% blue",
            **ended,
        )
        go_on("vanishes0", "unknown0")
        notebook.wait_for_bars(
            unknown="7/? done, 100% green",
            all="63/75 6 done, 1 failed, 1 cancelled, 84% red",
            **ended,
        )
        history = notebook.history
        assert not [line for line in history["short"] if "red" in line]
        for name in ("known", "late", "grows"):
            moved = list(itertools.dropwhile(lambda line: line.startswith("0/"), history[name]))
            assert not [line for line in moved if line.startswith("0/")]
        assert "Traceback" not in notebook.output


@pytest.mark.parametrize("waiting", [BLOCKING, AWAITING], ids=["blocking", "awaiting"])
def test_the_stop_button_cancels_the_tasks_and_leaves_their_bars_red(waiting, lab, gate, tmp_path):
    cleaned = tmp_path / "cleaned"
    cell = f"""
try:
    with ProcessPoolProgressExecutor(2) as executor:
        futures = {{
            name: executor.submit(jobs.clean_up_when_cancelled, {gate!r}, {str(cleaned)!r})
            for name in ("one", "two", "three", "four")
        }}
        for name, future in futures.items():
            future.add_tqdm_callback(tqdm, {{"desc": name, "leave": name != "two"}})
        everything = ProgressGroup(futures.values())
        everything.add_tqdm_callback(tqdm, {{"desc": "all"}})
{textwrap.indent(waiting, "    ")}
except BaseException as error:
    print(type(error).__name__, "left behind", multiprocessing.active_children())
"""
    with lab.notebook(IMPORTS + cell) as notebook:
        notebook.run(0)
        notebook.wait_for(lambda bars: "running" in bars.get("two", "") and "2 running" in bars.get("all", ""))
        notebook.press_stop()
        notebook.wait_for(
            lambda bars: len(bars) == 5 and all("cancelled" in line and "red" in line for line in bars.values())
        )
        notebook.wait_for_output(f"{'KeyboardInterrupt' if waiting is BLOCKING else 'CancelledError'} left behind []")
    told = cleaned.read_text()
    assert told.count("except") == told.count("finally") >= 2  # a third may begin when the first has ended
