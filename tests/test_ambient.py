"""`current_progress()`: the Updater of the task that code runs in, without its being handed through."""

import asyncio
import concurrent.futures
import contextvars
import threading
from pathlib import Path

import pytest

from progress_executor import ProgressExecutor, SyncProgressExecutor, Updater, current_progress
from progress_executor._ambient import current

from . import jobs
from .conftest import DEADLINE, EACH_POOL, START_METHODS, make_executor, open_gate, until


@pytest.fixture(params=[*EACH_POOL, "sync"])
def executor(request):
    with make_executor(request.param) as executor:
        yield executor


def test_what_a_task_calls_reports_for_it(executor):
    future = executor.submit(jobs.report_deeply, 3, 9, "deep")
    assert future.result()
    assert future.state == {"n": 3, "total": 9, "status": "done"}


def test_it_is_the_one_that_the_function_is_given(executor):
    assert executor.submit(jobs.is_the_current_one).result()


def test_its_progress_is_seen_while_it_runs(each_pool, gate):
    future = each_pool.submit(jobs.step_deeply, gate)
    until(lambda: future.state["n"] > 1)
    assert future.state["status"] == "running"
    open_gate(gate)
    assert future.result() == future.state["n"]


def test_what_a_task_calls_is_cancelled_with_it(each_pool, gate):
    future = each_pool.submit(jobs.step_deeply, gate)
    until(lambda: future.state["n"] > 0)
    future.cancel("enough")
    with pytest.raises(concurrent.futures.CancelledError, match="enough"):
        future.result(DEADLINE)
    assert future.state["n"] > 0


@pytest.mark.parametrize("kind", ["thread", *START_METHODS])
def test_it_is_cancelled_also_if_it_asks_only_then(kind, gate):
    pool = make_executor(kind)
    future = pool.submit(jobs.ask_when, gate)
    until(future.running)
    future.cancel()
    open_gate(gate)
    with pytest.raises(concurrent.futures.CancelledError), pool:
        future.result(DEADLINE)


def test_it_stands_still_also_if_it_asks_only_then(gate):
    with make_executor("thread") as pool:
        future = pool.submit(jobs.ask_when, gate)
        until(future.running)
        future.pause()
        open_gate(gate)
        until(lambda: future.state["status"] == "paused")
        future.resume()
        assert future.result(DEADLINE) == "not stopped"


def test_threads_of_its_context_share_it_and_no_count_is_lost(executor):
    future = executor.submit(jobs.count_in_threads_of_its_context, 4, 2000)
    assert future.result() == 8000
    assert future.state["n"] == 8000


def test_asyncio_carries_it_into_threads(executor):
    future = executor.submit(jobs.count_in_an_event_loop, 7)
    if isinstance(executor, SyncProgressExecutor):
        assert threading.Thread(target=future.result).start() is None  # not in the loop of a test
    assert future.result() == 7
    assert future.state["n"] == 7


def test_a_thread_that_asks_when_its_task_has_ended_counts_for_itself(each_pool, gate):
    future = each_pool.submit(jobs.leave_a_thread_that_asks_later, gate)
    future.result()
    others = [each_pool.submit(jobs.count, 3) for _ in range(30)]
    open_gate(gate)
    until(Path(gate + ".counted").exists)
    assert future.state == {"n": 0, "total": None, "status": "done"}
    assert [other.result() for other in others] == [3] * 30
    assert all(other.state["n"] == 3 for other in others)


def test_a_task_that_never_asks_has_no_progress(executor):
    future = executor.submit(jobs.add, 1)
    future.result()
    assert future.state == {"n": 0, "total": None, "status": "done"}


def test_outside_of_any_task_it_counts_for_itself():
    def ask():
        progress = current_progress()
        assert type(progress) is Updater
        progress.update(3)
        assert current_progress() is progress
        return progress

    first, second = contextvars.Context().run(ask), contextvars.Context().run(ask)
    assert first is not second
    assert first.n == second.n == 3


def test_a_task_in_the_calling_thread_has_its_own_and_leaves_the_callers():
    def outer(executor: ProgressExecutor, progress: Updater):
        inner = executor.submit(jobs.report_deeply, 3, 9, "deep")
        assert inner.result()
        assert current_progress() is progress
        progress.update(2)
        return inner.state["n"]

    def main():
        mine = current_progress()
        with SyncProgressExecutor() as executor:
            future = executor.submit(outer, executor)
            assert future.result() == 3
            assert future.state["n"] == 2
        assert current_progress() is mine
        assert mine.n == 0

    contextvars.Context().run(main)


def test_a_thread_of_a_pool_has_nothing_of_the_task_before(gate):
    found = []
    with make_executor("thread", 1) as executor:
        for task in (jobs.step_deeply, jobs.step_until):
            future = executor.submit(task, gate)
            future.add_done_callback(lambda _: found.append(current.get(None)))  # in that thread, when the task has ended
            open_gate(gate)
            future.result()
    assert found == [None, None]


def test_it_reports_to_callbacks_of_a_task_in_the_calling_thread():
    told = []
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.count_deeply, 300, 0.001)
        future.add_progress_callback(lambda old, new: told.append(new["n"]))
        future.result()
    assert told[-1] == 300
    assert 0 < told[-2] < 300


def test_it_is_awaited_like_any_other(gate):
    async def main():
        with make_executor("thread") as executor:
            future = executor.submit(jobs.step_deeply, gate)
            states = []
            future.add_progress_callback(lambda old, new: states.append(new["n"]) or (len(states) > 2 and open_gate(gate)))
            return await future, states

    n, states = asyncio.run(main())
    assert states[-1] == n
