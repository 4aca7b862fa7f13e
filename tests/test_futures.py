"""A future's progress, its callbacks and its cancellation, on every executor."""

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import signal
import threading
from concurrent.futures import Future

import pytest

from progress_executor import ProgressFuture, SyncProgressExecutor, ThreadPoolProgressExecutor

from . import jobs
from .conftest import make_executor, open_gate, until


def watch(future):
    """The states that a callback was given, as they come."""
    states = []
    future.add_progress_callback(lambda old, new: states.append((old, new)))
    return states


# State


def test_a_future_is_the_standard_librarys_and_ours(executor):
    future = executor.submit(jobs.add, 1)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, ProgressFuture)
    assert future.result() == 2


def test_a_pending_task_has_no_progress(pool, gate):
    blockers = [pool.submit(jobs.wait_for, gate) for _ in range(2)]
    pending = pool.submit(jobs.count, 3)
    assert pending.state == {"n": 0, "total": None, "status": "pending"}
    open_gate(gate)
    assert pending.result() == 3
    assert [blocker.result() for blocker in blockers] == ["waited"] * 2


def test_a_running_task_shows_what_it_reported(pool, gate):
    future = pool.submit(jobs.report_and_wait, 7, 20, "half way", gate)
    until(lambda: future.state == {"n": 7, "total": 20, "status": "half way"})


def test_a_running_task_without_a_text_is_running(pool, gate):
    future = pool.submit(jobs.report_and_wait, 1, None, "", gate)
    until(lambda: future.state == {"n": 1, "total": None, "status": "running"})


def test_a_task_that_takes_no_progress_is_running_too(pool, gate):
    future = pool.submit(jobs.wait_for, gate)
    until(lambda: future.state["status"] == "running")


@pytest.mark.parametrize(
    ("job", "args", "n", "status"),
    [(jobs.count, (5,), 5, "done"), (jobs.count_then_fail, (4,), 4, "failed"), (jobs.add, (1,), 0, "done")],
)
def test_the_final_state_is_the_last_that_the_task_wrote(executor, job, args, n, status):
    future = executor.submit(job, *args)
    future.exception()
    assert future.state["n"] == n
    assert future.state["status"] == status


def test_the_tasks_own_text_gives_way_to_the_final_status(executor):
    future = executor.submit(jobs.set_all, 3, 9, "nearly")
    future.result()
    assert future.state == {"n": 3, "total": 9, "status": "done"}


def test_the_final_state_is_there_as_soon_as_result_returns(local_pool):
    for n in range(200):
        future = local_pool.submit(jobs.count, n)
        future.result()
        assert future.state == {"n": n, "total": n, "status": "done"}


def test_a_state_is_a_copy(executor):
    future = executor.submit(jobs.count, 2)
    future.result()
    future.state["n"] = 100
    assert future.state["n"] == 2


@pytest.mark.parametrize("value", [1e30, -5, 0.25, 2**63 - 1])
def test_numbers_arrive_as_they_were_written(executor, value):
    future = executor.submit(jobs.set_all, value, None, "")
    future.result()
    assert future.state["n"] == value
    assert type(future.state["n"]) is type(value)


# Callbacks


def test_the_final_state_comes_once_and_last(executor):
    future = executor.submit(jobs.count, 1000)
    states = watch(future)
    future.result()
    assert [new["status"] for old, new in states].count("done") == 1
    assert states[-1][1] == {"n": 1000, "total": 1000, "status": "done"}
    future.result()
    future.exception()
    assert [new["status"] for old, new in states].count("done") == 1


def test_each_callback_is_given_the_state_that_it_was_given_before(executor):
    future = executor.submit(jobs.count_slowly, 30, 0.01)
    states = watch(future)
    future.result()
    assert states[0][0] == {"n": 0, "total": None, "status": "pending"}
    for (_, before), (old, new) in itertools.pairwise(states):
        assert old == before
        assert old != new


def test_the_final_state_of_a_failure_is_delivered(executor):
    future = executor.submit(jobs.count_then_fail, 6)
    states = watch(future)
    assert isinstance(future.exception(), ValueError)
    assert states[-1][1] == {"n": 6, "total": 6, "status": "failed"}


def test_the_final_state_of_a_pending_task_that_is_cancelled_is_delivered(pool, gate):
    blockers = [pool.submit(jobs.step_until, gate) for _ in range(5)]
    future = pool.submit(jobs.count, 3)
    states = watch(future)
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert [new for old, new in states] == [{"n": 0, "total": None, "status": "cancelled"}]
    open_gate(gate)
    for blocker in blockers:
        blocker.result()


def test_callbacks_come_in_order_of_addition(executor):
    future = executor.submit(jobs.count, 3)
    order = []
    for name in "abc":
        future.add_progress_callback(lambda old, new, name=name: order.append((new["status"], name)))
    future.result()
    assert [name for status, name in order if status == "done"] == ["a", "b", "c"]


def test_callbacks_come_in_the_thread_that_waits(executor):
    future = executor.submit(jobs.count_slowly, 30, 0.01)
    threads = set()
    future.add_progress_callback(lambda old, new: threads.add(threading.get_ident()))
    future.result()
    assert threads == {threading.get_ident()}


def test_waiting_for_one_future_delivers_the_others_too(pool, gate):
    watched = pool.submit(jobs.report_and_wait, 1, 2, "on its way", gate)
    states = watch(watched)
    other = pool.submit(jobs.count_slowly, 10**6, 0.001)
    watched.add_progress_callback(lambda old, new: other.cancel())
    with pytest.raises(concurrent.futures.CancelledError):
        other.result()
    assert states
    open_gate(gate)


def test_a_callback_that_raises_is_logged_and_harms_nobody(executor, caplog):
    future = executor.submit(jobs.count, 3)

    def bad(old, new):
        raise RuntimeError("bad callback")

    future.add_progress_callback(bad)
    states = watch(future)
    with caplog.at_level(logging.ERROR, "progress_executor"):
        assert future.result() == 3
    assert states[-1][1]["status"] == "done"
    assert "bad callback" in caplog.text


def test_a_removed_callback_is_not_called(executor):
    future = executor.submit(jobs.count, 3)
    states = []
    fn = lambda old, new: states.append(new)  # noqa: E731
    future.add_progress_callback(fn)
    future.add_progress_callback(fn)
    future.remove_progress_callback(fn)
    future.result()
    assert [state["status"] for state in states].count("done") == 1


def test_removing_what_was_not_added_is_an_error(executor):
    future = executor.submit(jobs.count, 3)
    with pytest.raises(ValueError, match="is not a progress callback"):
        future.remove_progress_callback(print)
    future.add_progress_callback(watch)
    future.remove_progress_callback(watch)
    with pytest.raises(ValueError, match="is not a progress callback"):
        future.remove_progress_callback(watch)


def test_a_callback_added_after_the_end_is_told_by_the_next_wait(executor):
    future = executor.submit(jobs.count, 3)
    future.result()
    states = watch(future)
    assert not states
    future.result()
    assert [new for old, new in states] == [{"n": 3, "total": 3, "status": "done"}]


def test_who_asks_for_a_result_that_is_there_is_told_other_ends(pool):
    asked, other = (pool.submit(jobs.count, 3) for _ in range(2))
    watch(asked)
    states = watch(other)
    until(lambda: asked.done() and other.done())
    assert not states
    asked.result()
    assert [new for old, new in states] == [{"n": 3, "total": 3, "status": "done"}]


def test_a_callback_added_while_the_task_ends_is_told_when_the_executor_is_left(gate):
    with ThreadPoolProgressExecutor() as executor:
        future = executor.submit(jobs.wait_for, gate)
        future._task.finish("done")  # as `set_result` begins: the final state is kept, the future not yet done
        states = watch(future)
        open_gate(gate)
    assert [new["status"] for old, new in states] == ["done"]


def test_a_task_that_ends_while_its_state_is_read_is_told_of_once(gate):
    with ThreadPoolProgressExecutor() as executor:
        future = executor.submit(jobs.wait_for, gate)
        states = watch(future)
        snapshot = future._task.snapshot

        def end_and_read():
            open_gate(gate)
            until(future.done)
            return snapshot()

        future._task.snapshot = end_and_read
        future._deliver()
    assert [new["status"] for old, new in states] == ["done"]


def test_a_callback_may_add_and_remove_callbacks(executor):
    future = executor.submit(jobs.count, 3)
    late = []

    def add_another(old, new):
        if new["status"] == "done":
            future.add_progress_callback(lambda old, new: late.append(new["status"]))

    future.add_progress_callback(add_another)
    future.result()
    assert late == ["done"]


def test_a_callback_that_waits_for_its_own_future_is_told_so(caplog):
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.count, 3)
        future.add_progress_callback(lambda old, new: future.result())
        with caplog.at_level(logging.ERROR, "progress_executor"):
            assert future.result() == 3
    assert "cannot wait for the future that it watches" in caplog.text


def test_leaving_the_executor_delivers_what_nobody_waited_for(pool_kind):
    with make_executor(pool_kind) as executor:
        states = watch(executor.submit(jobs.count_slowly, 30, 0.01))
    assert states[-1][1] == {"n": 30, "total": 30, "status": "done"}
    assert len(states) > 1


@pytest.fixture(params=["thread", "process", "sync"])
def pool_kind(request):
    return request.param


@pytest.mark.parametrize("wait", [concurrent.futures.wait, lambda fs: list(concurrent.futures.as_completed(fs))])
def test_wait_and_as_completed_deliver_while_they_block(pool_kind, wait):
    with make_executor(pool_kind) as executor:
        future = executor.submit(jobs.count_slowly, 50, 0.01)
        states = watch(future)
        wait([future])
        assert any(new["status"] == "running" for old, new in states)


# Cancellation


def test_a_running_task_runs_until_it_has_stopped(pool, gate, tmp_path):
    cleaned = tmp_path / "cleaned"
    future = pool.submit(jobs.clean_up_when_cancelled, gate, str(cleaned))
    until(lambda: future.state["n"] > 0)
    assert not future.cancel_requested()
    assert future.cancel()
    assert future.cancel_requested()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert future.cancelled()
    assert not future.running()
    assert cleaned.read_text() == "except finally"
    assert future.state["status"] == "cancelled"
    assert future.state["n"] > 0


def test_a_task_that_never_reports_is_running_although_cancelled(pool, gate):
    future = pool.submit(jobs.wait_for, gate)
    until(lambda: future.state["status"] == "running")
    assert future.cancel()
    assert future.running()
    assert future.cancel_requested()
    open_gate(gate)
    assert future.result() == "waited"
    assert not future.cancelled()


def test_a_value_returned_all_the_same_is_kept(pool):
    future = pool.submit(jobs.return_when_cancelled, "value")
    until(lambda: future.state["n"] > 0)
    assert future.cancel()
    assert future.result() == "value"
    assert not future.cancelled()
    assert future.state["status"] == "done"


def test_a_pending_task_is_cancelled_at_once_and_never_entered(local_pool, gate, tmp_path):
    blockers = [local_pool.submit(jobs.step_until, gate) for _ in range(2)]
    entered = tmp_path / "entered"
    futures = [local_pool.submit(jobs.note_and_wait, str(entered), gate) for _ in range(6)]
    assert all(future.cancel() for future in futures)
    assert futures[-1].cancelled()
    open_gate(gate)
    for blocker in blockers:
        blocker.result()
    for future in futures:
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
    assert not entered.exists()


def test_a_done_future_cannot_be_cancelled(executor):
    future = executor.submit(jobs.count, 3)
    future.result()
    assert not future.cancel()
    assert not future.cancel_requested()
    assert future.result() == 3


def test_cancelling_twice_is_cancelling(pool, gate):
    future = pool.submit(jobs.step_until, gate)
    until(lambda: future.state["n"] > 0)
    assert future.cancel()
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert future.cancel()


def test_cancelling_notifies_waiters_and_done_callbacks(pool, gate):
    future = pool.submit(jobs.step_until, gate)
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    until(lambda: future.state["n"] > 0)
    future.cancel()
    done, _ = concurrent.futures.wait([future], timeout=30)
    assert done == {future}
    assert called.wait(30)
    assert list(concurrent.futures.as_completed([future])) == [future]


def test_done_callbacks_of_pending_tasks_that_are_cancelled_find_the_final_state(local_pool, gate):
    for _ in range(5):
        local_pool.submit(jobs.step_until, gate)
    asked, waited = local_pool.submit(jobs.count, 3), local_pool.submit(jobs.count, 3)
    states, found = watch(waited), []

    def wait_and_look(future):
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
        found.append(states[-1][1])

    asked.add_done_callback(lambda future: found.append(future.state))
    waited.add_done_callback(wait_and_look)
    asked.cancel()
    waited.cancel()
    assert found == [{"n": 0, "total": None, "status": "cancelled"}] * 2
    open_gate(gate)


def test_the_executor_is_left_when_a_pending_task_that_is_being_cancelled_has_been_told(pool_kind, gate):
    entered, go = threading.Event(), threading.Event()

    def linger(_):
        entered.set()
        go.wait()

    with make_executor(pool_kind) as executor:
        for _ in range(5):
            executor.submit(jobs.step_until, gate)
        future = executor.submit(jobs.count, 3)
        states = watch(future)
        future.add_done_callback(linger)
        thread = threading.Thread(target=future.cancel)
        thread.start()
        entered.wait()
        open_gate(gate)
    assert [new["status"] for _, new in states] == ["cancelled"]
    go.set()
    thread.join()


def test_a_done_callback_that_raises_what_is_no_exception_leaves_the_future_cancelled_and_told(executor):
    def stop(_):
        raise asyncio.CancelledError

    future = executor.submit(jobs.count, 3)
    for _ in range(5):
        future = executor.submit(jobs.count_slowly, 10, 0.01)
    states = watch(future)
    Future.add_done_callback(future, stop)
    with contextlib.suppress(asyncio.CancelledError):
        future.cancel()
    assert future._task.call is None
    executor.shutdown()
    assert [new["status"] for _, new in states] == ["cancelled"]


def test_a_callback_may_cancel_the_task_that_it_watches(executor):
    future = executor.submit(jobs.count_slowly, 10**6, 0.001)
    future.add_progress_callback(lambda old, new: new["n"] and future.cancel())
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert 0 < future.state["n"] < 10**6


def test_a_cancelled_error_that_nobody_asked_for_is_a_failure(executor):
    future = executor.submit(_raise_cancelled)
    with contextlib.suppress(BaseException):
        future.result()
    assert not future.cancelled()
    assert future.state["status"] == "failed"


def _raise_cancelled():
    import asyncio

    raise asyncio.CancelledError


@pytest.mark.parametrize("wait", [concurrent.futures.wait, lambda fs: list(concurrent.futures.as_completed(fs))])
def test_wait_and_as_completed_deliver_the_final_state_before_they_return(pool_kind, wait, gate):
    with make_executor(pool_kind) as executor:
        future = executor.submit(jobs.step_until, gate)
        states = watch(future)
        future.add_progress_callback(lambda old, new: open_gate(gate))  # it is not done when the wait begins
        wait([future])
        assert states[-1][1] == {"n": future.result(), "total": None, "status": "done"}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_a_signal_handler_may_ask_for_the_state_and_cancel(pool, gate):
    future = pool.submit(jobs.step_until, gate)
    future.add_progress_callback(lambda old, new: None)
    handled = []

    def handler(signum, frame):
        handled.append(future.state)
        if len(handled) > 200:
            signal.setitimer(signal.ITIMER_REAL, 0)
            future.cancel()

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        until(lambda: future.state and len(handled) > 200)
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_final_state_is_whole_while_threads_of_the_task_still_write(pool_kind, gate):
    with make_executor(pool_kind, 1) as executor:
        for n in range(24):  # a pool of one process has eight slots, which are used in turn
            future = executor.submit(jobs.leave_a_thread_writing, n, gate)
            future.result()
            assert future.state == {"n": n, "total": n, "status": "done"}
        open_gate(gate)


class CancelsAtItsEnd:
    """An argument that cancels its task's future when it is freed."""

    future = None

    def __del__(self):
        self.future.cancel()


@pytest.mark.parametrize("make", [ThreadPoolProgressExecutor, SyncProgressExecutor])
def test_a_finalizer_of_an_argument_may_cancel_its_own_future(make, gate):
    argument = CancelsAtItsEnd()
    with make() as executor:
        future = argument.future = executor.submit(lambda argument: jobs.wait_for(gate), argument)
        del argument
        open_gate(gate)
        assert future.result(30) == "waited"


def test_a_task_that_must_not_start_was_never_running():
    with ThreadPoolProgressExecutor() as executor:
        executor._monitor.cancelling = True  # as on Ctrl-C
        future = executor.submit(jobs.count, 3)
        states = watch(future)
        until(future.done)
    assert future.cancelled()
    assert future._task.view().since is None
    assert [new["status"] for old, new in states] == ["cancelled"]


def test_ctrl_c_while_a_sync_task_ends_keeps_its_value(monkeypatch):
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.count, 3)
        finish = future._task.finish

        def finish_and_interrupt(status):
            finish(status)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(future._task, "finish", finish_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            future.result()
        assert future.result() == 3
