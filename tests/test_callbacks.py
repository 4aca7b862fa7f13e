"""Callbacks that raise, dawdle, wait, cancel, submit, come and go: no task, future or other callback is harmed."""

import asyncio
import concurrent.futures
import contextlib
import logging
import threading

import pytest

from progress_executor import ProgressGroup, SyncProgressExecutor, ThreadPoolProgressExecutor, _monitor

from . import jobs
from .conftest import CONCURRENT, DEADLINE, LOCAL, make_executor, open_gate, until
from .test_futures import watch

MILD = [RuntimeError, asyncio.CancelledError, concurrent.futures.CancelledError, GeneratorExit]
"""What a progress callback may raise, to be logged."""
STOPPING = [KeyboardInterrupt, SystemExit]
"""What is for who waits."""


def raiser(error):
    def fn(*args):
        raise error("of a callback")

    return fn


class Aside:
    """Calls `fn` in a thread that cannot keep the tests from ending."""

    def __init__(self, fn):
        self._fn = fn
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._value = self._fn()
        except BaseException as error:
            self._value = error

    @property
    def running(self):
        return self._thread.is_alive()

    @property
    def value(self):
        """What `fn` returned or raised."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "a dead-lock"
        return self._value


# That raise


@pytest.mark.parametrize("error", MILD)
def test_whatever_mild_a_progress_callback_raises_is_logged_and_harms_nobody(executor, error, gate, caplog):
    future = executor.submit(jobs.step_until, gate)
    future.add_progress_callback(raiser(error))
    states = watch(future)
    future.add_progress_callback(lambda old, new: open_gate(gate))
    with caplog.at_level(logging.ERROR, "progress_executor"):
        n = future.result()
    assert states[-1][1] == {"n": n, "total": None, "status": "done"}
    assert caplog.text.count("of a callback\n") >= 2  # while running, and with the final state


@pytest.mark.parametrize("error", STOPPING)
@pytest.mark.parametrize("kind", CONCURRENT)
def test_an_interrupt_of_a_progress_callback_is_raised_where_it_waits_and_the_task_goes_on(kind, error, gate):
    with make_executor(kind) as executor:
        future = executor.submit(jobs.step_until, gate)
        future.add_progress_callback(raiser(error))
        states = watch(future)
        with pytest.raises(error):
            future.result()
        assert not future.done()
        assert not future.cancel_requested()
        open_gate(gate)
        until(future.done)
        with pytest.raises(error):  # with the final state
            future.result()
        assert future.result() == future.state["n"]  # the callback is gone, the other one told
        assert [new["status"] for old, new in states] == ["done"]


@pytest.mark.parametrize("error", STOPPING)
def test_an_interrupt_of_a_progress_callback_loses_no_final_state_of_others(executor, error):
    future = executor.submit(jobs.count, 3)
    with pytest.raises(error):
        future.add_progress_callback(lambda old, new: new["status"] == "done" and raiser(error)())
        states = watch(future)
        future.result()
    executor.shutdown()
    assert [new["status"] for old, new in states].count("done") == 1
    assert future.result() == 3


@pytest.mark.parametrize("error", [*MILD, *STOPPING])
@pytest.mark.parametrize("kind", CONCURRENT)
def test_whatever_a_done_callback_raises_in_a_pool_is_logged_and_the_pool_works_on(kind, error, gate, caplog):
    with make_executor(kind, 1) as executor:
        future = executor.submit(jobs.step_until, gate)
        called = []
        future.add_done_callback(raiser(error))
        future.add_done_callback(called.append)
        following = [executor.submit(jobs.count, 3) for _ in range(5)]
        open_gate(gate)
        assert [future.result(DEADLINE) for future in following] == [3] * 5
        assert executor.submit(jobs.add, 1).result(DEADLINE) == 2
        assert called == [future]
    assert "of a callback" in caplog.text


@pytest.mark.parametrize("error", MILD)
def test_whatever_mild_a_done_callback_of_a_sync_task_raises_is_logged(error, caplog):
    with SyncProgressExecutor() as executor:
        future, failing = executor.submit(jobs.count, 3), executor.submit(jobs.fail)
        called = []
        for each in (future, failing):
            each.add_done_callback(raiser(error))
            each.add_done_callback(called.append)
        assert future.result() == 3
        assert isinstance(failing.exception(), ValueError)
        assert called == [future, failing]
    assert caplog.text.count("of a callback\n") >= 2


@pytest.mark.parametrize("error", STOPPING)
def test_an_interrupt_of_a_done_callback_is_raised_in_the_main_thread_with_all_others_called(error, gate):
    with SyncProgressExecutor() as executor, ThreadPoolProgressExecutor(1) as pool:
        ran, pending = executor.submit(jobs.count, 3), [pool.submit(jobs.wait_for, gate) for _ in range(2)][1]
        called = []
        for future, act in ((ran, ran.result), (pending, pending.cancel)):
            future.add_done_callback(raiser(error))
            future.add_done_callback(called.append)
            with pytest.raises(error):
                act()
        assert called == [ran, pending]
        assert ran.result() == 3
        assert pending.cancelled()
        open_gate(gate)


# That dawdle


@pytest.mark.parametrize("kind", CONCURRENT)
def test_a_slow_callback_slows_no_task_and_is_then_given_the_newest_state(kind, gate, tmp_path):
    finished = tmp_path / "finished"
    with make_executor(kind) as executor, make_executor("thread", 1) as other:
        future = executor.submit(jobs.chatter, gate, str(finished))
        neighbour = executor.submit(jobs.count, 1000)
        elsewhere = other.submit(jobs.count, 1000)
        states, left = [], []

        def dawdle(old, new):
            states.append((old, new))
            if len(states) == 1:
                until(lambda: future.state["n"] > new["n"] + 200, "further progress")
                until(neighbour.done)
                until(elsewhere.done)
                left.append(future.state["n"])
            elif len(states) == 2:
                open_gate(gate)

        future.add_progress_callback(dawdle)
        future.result()
        assert finished.exists()
    assert states[1][0] == states[0][1]
    assert states[1][1]["n"] >= left[0]  # the newest, and none of those in between
    assert states[-1][1]["status"] == "done"


# That wait


@pytest.mark.parametrize("kind", CONCURRENT)
def test_a_callback_that_waits_for_its_own_running_future_is_told_so(kind, gate, caplog):
    with make_executor(kind) as executor:
        future = executor.submit(jobs.step_until, gate)
        future.add_progress_callback(lambda old, new: future.result())
        future.add_progress_callback(lambda old, new: future.exception(timeout=DEADLINE))
        future.add_progress_callback(lambda old, new: open_gate(gate))
        assert future.result(DEADLINE) == future.state["n"]
    assert caplog.text.count("cannot wait for the future that it watches") >= 2


def test_a_callback_finds_the_result_of_its_own_future_with_the_final_state(executor):
    future = executor.submit(jobs.count, 3)
    group = ProgressGroup([future])
    results = []
    for get in (future.result, future.exception, group.result, lambda: list(concurrent.futures.as_completed([future]))):
        future.add_progress_callback(lambda old, new, get=get: new["status"] == "done" and results.append(get()))
        group.add_progress_callback(lambda old, new, get=get: new["status"] == "done" and results.append(get()))
    future.add_done_callback(lambda future: results.append(future.result()))
    until(lambda: future.result() and len(results) == 9)
    assert [results.count(value) for value in (3, None, [3], [future])] == [3, 2, 2, 2]


def test_a_callback_may_wait_for_another_future_and_for_a_group(executor):
    first = executor.submit(jobs.count, 3)
    others = [executor.submit(jobs.count, n) for n in range(4)]
    results = []
    first.add_progress_callback(
        lambda old, new: new["status"] == "done" and results.append((others[1].result(), ProgressGroup(others).result()))
    )
    seen = [watch(future) for future in others]
    assert first.result() == 3
    assert results == [(1, [0, 1, 2, 3])]
    assert [states[-1][1]["status"] for states in seen] == ["done"] * 4


def test_a_sync_callback_that_waits_for_a_group_with_its_own_future_is_told_so(caplog):
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.count, 3)
        group = ProgressGroup([future, executor.submit(jobs.count, 4)])
        future.add_progress_callback(lambda old, new: new["status"] != "done" and group.result())
        assert group.result() == [3, 4]
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("timeout", [None, 0.05])
@pytest.mark.parametrize("kind", CONCURRENT)
def test_callbacks_that_wait_for_each_others_futures_do_not_dead_lock(kind, timeout, done, gate):
    """In two threads, each in a callback of the one future, waiting for the other; they have ended already, or end then."""
    with make_executor(kind) as executor:
        futures = [executor.submit(jobs.step_until, gate) for _ in range(2)]
        meet = threading.Barrier(2, timeout=DEADLINE)
        results, states = [], []

        def wait_for_other(future, other):
            def callback(old, new):
                if not results and (not done or new["status"] == "done"):
                    meet.wait()
                    open_gate(gate)
                    try:
                        results.append(other.result(timeout))
                    except TimeoutError:
                        results.append("too late")

            future.add_progress_callback(callback)
            states.append(watch(future))
            return future.result()

        if done:
            open_gate(gate)
            concurrent.futures.wait(futures)
        pairs = [futures, futures[::-1]]
        threads = [Aside(lambda pair=pair: wait_for_other(*pair)) for pair in pairs]
        values = [thread.value for thread in threads]
        assert values == [future.result() for future in futures]
        assert len(results) == 2
        assert timeout is not None or sorted(results) == sorted(values)
    assert [[new["status"] for _, new in each].count("done") for each in states] == [1, 1]
    assert not executor._monitor.ended


def test_a_task_that_waits_for_a_future_whose_callback_waits_for_the_task_does_not_dead_lock():
    with ThreadPoolProgressExecutor(2) as executor:
        first = executor.submit(jobs.count, 3)
        told, go = threading.Event(), threading.Event()

        def second_task():
            told.wait(DEADLINE)
            go.set()
            return first.result()

        second = executor.submit(second_task)

        def callback(old, new):
            told.set()
            go.wait(DEADLINE)
            assert second.result(DEADLINE) == 3

        first.add_progress_callback(callback)
        assert Aside(first.result).value == 3
        assert second.result(0) == 3


@pytest.mark.parametrize("wait", [lambda future: future.result(), lambda future: ProgressGroup([future]).result()[0]])
def test_a_result_that_is_there_waits_for_no_callback_of_another_thread(wait):
    """Which may be waiting for what this thread is to do next, in whatever way."""
    with ThreadPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.count, 3)
        telling, go = threading.Event(), threading.Event()
        future.add_progress_callback(lambda old, new: (new["status"] == "done" and telling.set()) or go.wait(DEADLINE))
        first = Aside(future.result)
        assert telling.wait(DEADLINE)
        try:
            assert wait(future) == 3
            assert first.running
        finally:
            go.set()
        assert first.value == 3


def test_what_ends_while_a_thread_is_about_to_be_done_with_delivering_is_told_by_that_thread(gate):
    """Whoever waits for the end finds it delivering, and goes on."""
    with ThreadPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.step_until, gate)
        states = watch(future)
        until(lambda: future.state["n"])
        (subscription,) = future._task.subscriptions

        class LateLock(type(subscription._lock)):
            def release(self):
                open_gate(gate)
                until(future.done)
                assert Aside(future.result).value == future.state["n"]
                super().release()

        subscription._lock = LateLock()
        subscription.deliver(now=True)
        assert [new["status"] for _, new in states] == ["running", "done"]


def test_the_end_is_told_by_the_thread_that_was_delivering_though_a_callback_raises_there(gate):
    """Who waited meanwhile has left it to that thread."""

    def end_and_raise(old, new):
        if new["status"] == "running":
            open_gate(gate)
            until(future.done)
            raise SystemExit

    with ThreadPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.step_until, gate)
        future.add_progress_callback(end_and_raise)
        states = watch(future)
        assert isinstance(Aside(future.result).value, SystemExit)
        assert [new["status"] for _, new in states] == ["done"]


def test_a_callback_that_ctrl_c_kept_from_being_called_is_told_the_next_time(executor, monkeypatch):
    future = executor.submit(jobs.count, 3)
    states = watch(future)
    concurrent.futures.wait([future]) if isinstance(executor, SyncProgressExecutor) else until(future.done)
    later = watch(future)
    with monkeypatch.context() as patched:
        patched.setattr(_monitor, "_call", raiser(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            future.result()
    assert future.result() == 3
    assert [new["status"] for _, new in later] == ["done"]
    assert [new["status"] for _, new in states].count("done") == 1


@pytest.mark.parametrize("kind", CONCURRENT)
def test_a_done_callback_that_asks_for_the_result_delivers_nothing_in_its_worker(kind, gate):
    with make_executor(kind) as executor:
        future = executor.submit(jobs.step_until, gate)
        threads, results = [], []
        future.add_progress_callback(lambda old, new: threads.append(threading.get_ident()))
        future.add_done_callback(lambda future: results.append(future.result()))
        future.add_done_callback(lambda future: concurrent.futures.wait([future]))
        open_gate(gate)
        until(lambda: results)
        assert not threads
        future.result()
        assert threads == [threading.get_ident()]
        assert results == [future.result()]


def test_many_callbacks_that_ask_for_their_own_result_are_all_told(local_pool):
    futures, told = [local_pool.submit(str, number) for number in range(1000)], []
    for future in futures:
        future.add_progress_callback(lambda old, new, future=future: told.append(future.result()))
    until(lambda: all(future.done() for future in futures))
    for future in futures:
        future.result()
    assert sorted(told) == sorted(map(str, range(1000)))


def test_nested_waits_leave_no_feed_behind(pool):
    """On the monitor's list of what is to be told, where it would stay while only others are waited for."""
    futures = [pool.submit(jobs.count, n) for n in range(4)]
    group = ProgressGroup(futures)
    for awaited in (*futures, group):
        for waited_for in (awaited, *futures):
            awaited.add_progress_callback(lambda old, new, it=waited_for: it.result())
        watch(awaited)  # in whose place the first ones put it back
    until(group.done)
    for future in futures:
        future.result()
        assert future._task.subscriptions[0] not in pool._monitor.ended
    assert group.result() == [0, 1, 2, 3]
    assert not pool._monitor.ended


# That come and go, cancel and submit


def test_a_callback_may_remove_itself_and_one_that_comes_after_it(executor, gate):
    future = executor.submit(jobs.step_until, gate)
    calls = []

    def first(old, new):
        calls.append("first")
        future.remove_progress_callback(first)
        future.remove_progress_callback(second)

    def second(old, new):
        calls.append("second")

    def third(old, new):
        calls.append("third")
        open_gate(gate)

    for fn in (first, second, third):
        future.add_progress_callback(fn)
    future.result()
    assert calls.count("first") == 1
    assert "second" not in calls
    assert calls.count("third") >= 2


def test_callbacks_that_add_themselves_back_are_told_the_final_state_once(executor):
    future = executor.submit(jobs.count, 3)
    calls = []

    def ping(old, new):
        if new["status"] == "done":
            calls.append("ping")
            future.add_progress_callback(ping)
            future.add_progress_callback(pong)

    def pong(old, new):
        if new["status"] == "done":
            calls.append("pong")
            future.add_progress_callback(ping)

    future.add_progress_callback(ping)
    assert future.result() == 3
    executor.shutdown()
    assert calls == ["ping", "pong"]


def test_callbacks_may_submit_to_their_own_executor(executor):
    futures = []

    def submit_another(future):
        if len(futures) < 20:
            submit(future.result())

    def submit(n):
        futures.append(executor.submit(jobs.add, n))
        futures[-1].add_done_callback(submit_another)

    first = executor.submit(jobs.count, 3)
    first.add_progress_callback(lambda old, new: new["status"] == "done" and submit(0))
    first.result()
    until(lambda: futures[-1].result(DEADLINE) == 20)
    assert [future.result() for future in futures] == list(range(1, 21))


def test_callbacks_may_cancel_other_futures(pool, gate, tmp_path):
    own = str(tmp_path / "own")
    first = pool.submit(jobs.step_until, own)
    others = running, pending, last = [pool.submit(jobs.step_until, gate) for _ in range(3)]
    try:
        until(lambda: first.state["n"] and running.state["n"])
        seen = [watch(future) for future in others]
        first.add_progress_callback(lambda old, new: running.cancel() and pending.cancel() and open_gate(own))
        running.add_done_callback(lambda _: last.cancel())
        assert first.result(DEADLINE) == first.state["n"]
        concurrent.futures.wait(others, DEADLINE)
        assert all(future.cancelled() for future in others)
    finally:
        open_gate(own)
        open_gate(gate)
    pool.shutdown()
    assert [states[-1][1]["status"] for states in seen] == ["cancelled"] * 3


# That use their executor where it ends


def submit(executor):
    executor.submit(jobs.add, 1)


def submit_in_a_thread(executor):
    thread = threading.Thread(target=use_quietly, args=(submit, executor))
    thread.start()
    thread.join()


def shut_down(executor):
    executor.shutdown(wait=False)


def use_quietly(use, executor):
    with contextlib.suppress(RuntimeError):  # it takes no more tasks
        use(executor)


@pytest.mark.parametrize("how", ["ctrl-c", "cancel_futures"])
@pytest.mark.parametrize("use", [submit, submit_in_a_thread, shut_down])
@pytest.mark.parametrize("kind", CONCURRENT)
def test_a_done_callback_may_use_its_executor_while_pending_tasks_are_cancelled(kind, use, how, gate):
    executor = make_executor(kind, 1)
    running, *pending = (executor.submit(jobs.step_until, gate) for _ in range(4))
    until(lambda: running.state["n"])
    used = []

    def leave():
        if how == "cancel_futures":
            executor.shutdown(wait=False, cancel_futures=True)
        else:
            with contextlib.suppress(KeyboardInterrupt), executor:
                raise KeyboardInterrupt

    pending[-1].add_done_callback(lambda future: (use_quietly(use, executor), used.append(future)))
    assert Aside(leave).value is None
    until(lambda: used == [pending[-1]], "the end of the callback")
    assert pending[-1].cancelled()
    open_gate(gate)
    assert Aside(executor.shutdown).value is None


@pytest.mark.parametrize("use", [submit, shut_down])
def test_a_done_callback_may_use_its_executor_where_the_initializer_of_a_thread_has_failed(use):
    go = threading.Event()

    def initialize():
        go.wait(DEADLINE)
        raise ValueError("of an initializer")

    executor = ThreadPoolProgressExecutor(1, initializer=initialize)
    futures = [executor.submit(jobs.add, 1) for _ in range(3)]
    futures[0].add_done_callback(lambda _: use_quietly(use, executor))
    go.set()
    assert not concurrent.futures.wait(futures, DEADLINE).not_done
    assert all(isinstance(future.exception(), concurrent.futures.BrokenExecutor) for future in futures)
    executor.shutdown()


@pytest.mark.parametrize("error", STOPPING)
@pytest.mark.parametrize("how", ["with", "async with", "cancel_futures", "cancel_futures, not waiting"])
@pytest.mark.parametrize("kind", LOCAL)
def test_an_interrupt_of_a_done_callback_comes_when_all_have_been_cancelled_and_waited_for(kind, how, error, gate, tmp_path):
    executor = make_executor(kind, 1)
    running, *pending = (executor.submit(jobs.clean_up_when_cancelled, gate, str(tmp_path / "cleaned")) for _ in range(9))
    if kind == "sync":
        pending.append(running)
    else:
        until(lambda: running.state["n"])
    pending[3].add_done_callback(raiser(error))
    if how == "cancel_futures":
        pending[-1].add_done_callback(lambda _: open_gate(gate))

    async def leave_in_loop():
        async with executor:
            raise asyncio.CancelledError

    with pytest.raises(error, match="of a callback"):
        if how == "with":
            with executor:
                raise KeyboardInterrupt
        elif how == "async with":
            asyncio.run(leave_in_loop())
        else:
            executor.shutdown(wait=how == "cancel_futures", cancel_futures=True)
    assert all(future.cancelled() for future in pending[3:])  # those before may have been in the call queue
    if how != "cancel_futures, not waiting":
        assert all(future.done() for future in (running, *pending))
        assert running.cancelled() == (how != "cancel_futures" or kind == "sync")
    with pytest.raises(RuntimeError):
        executor.submit(jobs.add, 1)
    open_gate(gate)
    executor.shutdown()


def test_a_callback_that_ends_the_program_at_each_call_ends_it_when_all_is_told(gate):
    told = []
    with pytest.raises(SystemExit), ThreadPoolProgressExecutor(2) as executor:
        futures = [executor.submit(jobs.step_until, gate) for _ in range(2)]
        futures[0].add_progress_callback(raiser(SystemExit))
        futures[1].add_progress_callback(lambda old, new: told.append(new))
        until(lambda: all(future.state["n"] for future in futures))
        threading.Timer(0.5, open_gate, [gate]).start()  # after some calls
    assert all(future.done() for future in futures)
    assert told[-1]["status"] == "done"
