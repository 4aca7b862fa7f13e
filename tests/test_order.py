"""In which order the tasks of a process pool start."""

import os
import time

import pytest

from . import jobs
from .conftest import make_executor, open_gate, until

WORKERS = 2
TASKS = 100


def note(path, number):
    """Adds its number to the file; appending a few bytes is one step."""
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(file, number.to_bytes(2, "big"))
    os.close(file)


def noted(path):
    data = path.read_bytes() if path.exists() else b""
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]


class NotPlain(int):
    """A number whose pickling may run somebody's code."""


@pytest.fixture
def pool():
    """Whose workers are both ready."""
    with make_executor("fork", WORKERS) as pool:
        pool.submit(jobs.add, 1).result()
        until(lambda: pool._workers.ready == WORKERS)
        yield pool


def test_few_overtake_a_task_that_was_given_in_advance(pool, gate, tmp_path):
    path = tmp_path / "noted"
    for _ in range(WORKERS):  # busy while the others are submitted
        pool.submit(time.sleep, 0.05)
    long = pool.submit(jobs.wait_for, gate)
    futures = [pool.submit(note, str(path), number) for number in range(TASKS)]
    until(lambda: all(future.done() for future in futures))
    assert not long.done()
    order = noted(path)
    assert sorted(order) == list(range(TASKS))
    for number in range(TASKS):
        before = order[: order.index(number)]
        assert sum(other > number for other in before) <= 6 * WORKERS
    open_gate(gate)


def test_tasks_that_are_not_plain_start_in_order(tmp_path):
    path = tmp_path / "noted"
    with make_executor("fork", 1) as one:
        for number in range(TASKS):
            one.submit(note, str(path), NotPlain(number))
    assert noted(path) == list(range(TASKS))


def test_what_was_given_in_advance_goes_to_an_idle_worker(pool, gate):
    for _ in range(WORKERS):  # busy while the others are submitted
        pool.submit(time.sleep, 0.05)
    long, behind = pool.submit(jobs.wait_for, gate), pool.submit(jobs.add, 1)
    assert behind.result() == 2
    assert not long.done()
    open_gate(gate)


def test_a_task_is_running_as_soon_as_its_state_says_so(gate, tmp_path):
    with make_executor("fork", 1) as one:
        begun, first = str(tmp_path / "begun"), one.submit(jobs.step_until, gate)
        behind = one.submit(jobs.step_until, begun)
        until(lambda: behind._task.slot is not None)
        with one._workers.links[0]._lock:  # the end of the first one is not heard of
            open_gate(gate)
            until(lambda: behind.state["status"] == "running")
            assert not first.done()
            assert behind.running()
        open_gate(begun)
