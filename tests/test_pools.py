"""Pools of threads and of processes: what comes at the same time, or cannot be had, costs nobody a task."""

import asyncio
import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections import deque
from multiprocessing.connection import Connection

import pytest

from progress_executor import ProcessPoolProgressExecutor, ThreadPoolProgressExecutor, WorkerDied
from progress_executor._executors.crew import Crew
from progress_executor._executors.process import link as links

from . import jobs
from .conftest import DEADLINE, START_METHODS, alive, make_executor, open_gate, until

POOLS = ["thread", "fork"]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@pytest.fixture(params=POOLS)
def kind(request):
    return request.param


def in_time(function):
    """Call it in a thread, and fail if it does not return."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive(), "it hangs"


def touch(path):
    open(path, "w").close()


# The end


def test_a_submit_that_comes_late_does_not_keep_the_pool(kind):
    """It has seen that the pool is open, and appends when the last thread is about to end."""
    executor, appending, ending, appended, looked = make_executor(kind, 1), *(threading.Event() for _ in range(4))
    executor.submit(jobs.add, 1).result()
    crew = executor._crew

    class Pending(deque):
        def append(self, future):
            appending.set()
            assert ending.wait(DEADLINE)
            super().append(future)
            appended.set()
            assert looked.wait(DEADLINE)

    def end_if_over(original=crew._end_if_over):
        if threading.current_thread() not in crew.threads:
            original()
            return
        ending.set()
        assert appended.wait(DEADLINE)
        original()
        looked.set()

    crew.pending, crew._end_if_over = Pending(), end_if_over
    futures = []

    def submit():
        with contextlib.suppress(RuntimeError):
            futures.append(executor.submit(jobs.add, 1))

    late = threading.Thread(target=submit)
    late.start()
    assert appending.wait(DEADLINE)
    in_time(executor.shutdown)
    late.join()
    assert [future.result(DEADLINE) for future in futures] == [2] * len(futures)


@forks
def test_what_a_kill_takes_back_is_not_lost_where_the_pool_ends(monkeypatch, gate):
    with make_executor("fork", 1) as executor:
        executor.submit(jobs.wait_for, gate)  # until both are pending
        running, behind = executor.submit(jobs.wait_for, gate + "2"), executor.submit(jobs.add, 1)
        open_gate(gate)
        until(lambda: behind._task.link is not None)
        put_back, workers = executor._workers.put_back, executor._workers

        def put_back_later(future):
            if threading.current_thread() not in workers.threads:
                time.sleep(0.3)  # it may be preempted here for as long
            put_back(future)

        monkeypatch.setattr(workers, "put_back", put_back_later)
        executor.shutdown(wait=False)
        assert running.cancel(kill_after=0)
        assert behind.result(DEADLINE) == 2


@forks
def test_a_child_that_is_forked_where_a_pool_ends_holds_up_nobody(monkeypatch, gate):
    executor, close, children = make_executor("fork", 1), Connection.close, []
    executor.submit(jobs.add, 1).result()
    child = multiprocessing.get_context("fork").Process(target=jobs.wait_for, args=(gate,))

    def close_beside_a_fork(self):
        if not children and threading.current_thread() in executor._crew.threads:
            children.append(threading.Thread(target=child.start))
            children[0].start()
            children[0].join(0.2)  # it may have to wait
        close(self)

    monkeypatch.setattr(Connection, "close", close_beside_a_fork)
    in_time(executor.shutdown)
    children[0].join()
    assert child.is_alive()
    open_gate(gate)
    child.join()


@pytest.mark.parametrize("end", ["kill_workers", "terminate_workers"])
@pytest.mark.parametrize("method", START_METHODS)
def test_a_pool_that_is_stopped_starts_no_worker_any_more(method, end, tmp_path):
    with make_executor(method, 1, initializer=note_and_stay, initargs=(tmp_path,)) as executor:
        future = executor.submit(jobs.add, 1)
        until(lambda: list(tmp_path.iterdir()), "the start")
        getattr(executor, end)()
        in_time(executor.shutdown)
    assert future.cancelled()
    assert len(list(tmp_path.iterdir())) == 1


def note_and_stay(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(60)


@forks
def test_no_task_runs_when_its_worker_was_killed_with_all(tmp_path):
    for number in range(40):
        path = tmp_path / str(number)
        with make_executor("fork", 1) as executor:
            executor.submit(jobs.add, 1).result()
            future = executor.submit(sleep_and_touch, str(path))
            time.sleep(number * 1e-5)
            executor.kill_workers()
            assert future.cancelled() or isinstance(future.exception(DEADLINE), WorkerDied)
    assert not list(tmp_path.iterdir())


def sleep_and_touch(path):
    time.sleep(0.01)
    touch(path)


@forks
@pytest.mark.parametrize("leave", [jobs.leave_a_thread_that_sleeps, jobs.stop_when_done])
def test_after_ctrl_c_a_worker_that_does_not_end_is_killed(leave):
    executor = make_executor("fork", 1, kill_after=0.1)
    with pytest.raises(KeyboardInterrupt), executor:
        pid = executor.submit(leave).result(DEADLINE)
        raise KeyboardInterrupt
    assert not alive(pid)


def test_who_runs_in_a_pool_cannot_leave_it_in_an_event_loop(kind):
    errors = []

    async def leave(executor):
        async with executor:
            pass

    def try_to_leave(_):
        with pytest.raises(RuntimeError, match="cannot wait for that executor's end") as caught:
            asyncio.run(leave(executor))
        errors.append(caught.value)

    with make_executor(kind, 1) as executor:
        future = executor.submit(jobs.add, 1)
        future.add_done_callback(try_to_leave) if kind == "fork" else executor.submit(try_to_leave, None).result(DEADLINE)
        until(lambda: errors)


# Given in advance


@forks
def test_what_is_being_given_in_advance_is_cancelled_by_ctrl_c(monkeypatch, gate):
    packed, packing, go = links._packed, threading.Event(), threading.Event()

    def pack(future):
        if future is futures[1]:
            packing.set()
            assert go.wait(DEADLINE)
        return packed(future)

    monkeypatch.setattr(links, "_packed", pack)
    with pytest.raises(KeyboardInterrupt), make_executor("fork", 1) as executor:
        futures = [None, None]
        executor.submit(jobs.wait_for, gate)
        futures = [executor.submit(jobs.check_until, gate + "2"), executor.submit(jobs.add, 1)]
        open_gate(gate)
        assert packing.wait(DEADLINE)
        threading.Timer(0.1, go.set).start()  # in the midst of leaving
        raise KeyboardInterrupt
    assert [future.cancelled() for future in futures] == [True, True]
    assert not executor._monitor.running


@forks
def test_a_forked_child_does_nothing_to_what_was_given_in_advance(gate):
    with make_executor("fork", 1) as executor:
        executor.submit(jobs.wait_for, gate)
        running, behind = executor.submit(jobs.wait_for, gate + "2"), executor.submit(os.getpid)
        open_gate(gate)
        until(lambda: behind._task.link is not None)
        locked, go = threading.Event(), threading.Event()

        def lock():
            with behind._task.link._lock:
                locked.set()
                go.wait(DEADLINE)

        thread = threading.Thread(target=lock)
        thread.start()
        assert locked.wait(DEADLINE)
        child = os.fork()
        if not child:
            signal.alarm(10)  # for a lock that nobody gives back
            os._exit(0 if behind.cancel() else 1)
        go.set()
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        (worker,) = executor._processes
        assert not behind.done()
        open_gate(gate + "2")
        assert running.result(DEADLINE) == "waited"
        assert behind.result(DEADLINE) == worker


@pytest.mark.slow
@forks
def test_finalizers_and_threads_may_cancel_the_same_futures():
    thresholds, futures, until_when = gc.get_threshold(), [], time.monotonic() + 8

    def cancel():
        for future in futures[-8:]:
            future.cancel()

    class Cancels:
        def __init__(self):
            self.itself = self  # only the collector finds it

        def __del__(self):
            cancel()

    def cancel_all_the_time():
        while time.monotonic() < until_when:
            cancel()

    with make_executor("fork") as executor:
        executor.submit(jobs.add, 1).result()
        thread = threading.Thread(target=cancel_all_the_time)
        thread.start()
        gc.set_threshold(30, 1, 1)
        try:
            while time.monotonic() < until_when:
                futures.append(executor.submit(jobs.add, 1))
                Cancels()
        finally:
            gc.set_threshold(*thresholds)
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert not concurrent.futures.wait(futures, DEADLINE).not_done


# What others do to the futures


def test_a_future_that_somebody_else_ends_stops_no_pool(kind, gate):
    with make_executor(kind, 1) as executor:
        running, pending = executor.submit(jobs.wait_for, gate), executor.submit(jobs.add, 1)
        until(running.running)
        running.set_result("mine")
        pending.set_result("mine, too")
        after = executor.submit(jobs.add, 2)
        open_gate(gate)
        assert after.result(DEADLINE) == 3
    assert (running.result(), pending.result()) == ("mine", "mine, too")


class StiffError(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(name)


def raise_stiff():
    raise StiffError("on purpose")


def test_an_error_that_forbids_changes_arrives():
    with make_executor(None) as executor:
        error = executor.submit(raise_stiff).exception(DEADLINE)
    assert (type(error), error.args) == (StiffError, ("on purpose",))
    assert "in raise_stiff" in str(error.__cause__)


NOT_PICKLED = [(len, jobs.IndexErrorWhenPickled()), (jobs.FailsWhenUnpickled,)]


@forks
@pytest.mark.parametrize("call", NOT_PICKLED, ids=["call", "result"])
def test_no_collector_is_needed_for_what_cannot_be_pickled(call):
    gc.disable()
    try:
        with make_executor("fork", 1) as executor:
            future = executor.submit(*call)
            assert future.exception(DEADLINE) is not None
            assert future.exception().__cause__ is not None  # the traceback, as text
            gone = weakref.ref(future)
            del future
            executor.submit(jobs.add, 1).result()  # with which the thread has forgotten the other one
            until(lambda: gone() is None)
    finally:
        gc.enable()


# What cannot be had


def test_a_pool_works_on_where_no_more_threads_can_be_started(kind, gate, monkeypatch):
    with make_executor(kind) if kind == "thread" else make_executor("spawn") as executor:
        first = executor.submit(jobs.wait_for, gate)
        until(first.running)

        def start(self):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                executor.submit(jobs.add, 1)
            executor._crew._starting.update(range(2))  # who submits counts threads that have taken other futures just now
            futures = [executor.submit(jobs.add, number) for number in range(2)]
            executor._crew._starting.clear()
            open_gate(gate)
            assert [future.result(DEADLINE) for future in futures] == [1, 2]
        assert executor.submit(jobs.add, 3).result(DEADLINE) == 4


@pytest.mark.parametrize("method", START_METHODS)
def test_each_thread_serves_a_worker_of_its_own(method, monkeypatch):
    """Also where they begin late: another one is started meanwhile."""
    run = Crew._run

    def run_late(self, work):
        time.sleep(0.1)  # it may be preempted for as long
        run(self, work)

    monkeypatch.setattr(Crew, "_run", run_late)
    with make_executor(method, 3) as executor:
        futures = [executor.submit(jobs.add, number) for number in range(3)]
        assert [future.result(DEADLINE) for future in futures] == [1, 2, 3]
        assert len(executor._processes) == 3
    with make_executor(method, 3) as executor:
        assert executor.submit(jobs.add, 1).result(DEADLINE) == 2
        assert len(executor._processes) == (3 if method == "fork" else 1)


def test_a_signal_handler_that_submits_makes_no_thread_too_many(monkeypatch):
    signals, futures, init = [signal.SIGALRM], [], threading.Thread.__init__

    def raise_and_init(self, *args, **kwargs):
        if signals:
            signal.raise_signal(signals.pop())
        init(self, *args, **kwargs)

    with make_executor("thread", 1) as executor:
        before = signal.signal(signal.SIGALRM, lambda *_: futures.append(executor.submit(jobs.add, 1)))
        try:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "__init__", raise_and_init)
                futures.append(executor.submit(jobs.add, 2))
        finally:
            signal.signal(signal.SIGALRM, before)
        assert [future.result(DEADLINE) for future in futures] == [2, 3]
        assert len(executor._threads) == 1


@pytest.mark.parametrize("method", START_METHODS)
def test_a_worker_that_cannot_be_replaced_for_a_while_breaks_no_pool(method, gate):
    resource = pytest.importorskip("resource")
    with make_executor(method) as executor:
        busy = executor.submit(jobs.wait_for, gate)
        until(busy.running)
        assert executor.submit(jobs.add, 1).result(DEADLINE) == 2
        until(lambda: executor._workers.ready == 2)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = min(set(range(soft)) - {int(file) for file in os.listdir("/dev/fd")})
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(WorkerDied):
                executor.submit(jobs.be_killed).result(DEADLINE)
            future = executor.submit(jobs.add, 2)
            time.sleep(1.2)  # it is tried more than three times
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert future.result(DEADLINE) == 3
        open_gate(gate)
        assert busy.result(DEADLINE) == "waited"


@pytest.mark.parametrize("cls", [ThreadPoolProgressExecutor, ProcessPoolProgressExecutor])
def test_a_number_of_workers_that_is_none_is_refused(cls):
    with pytest.raises(TypeError):
        cls(1.5)


def test_what_map_gives_can_be_closed(gate):
    with make_executor(None, 1) as executor:
        values = executor.map(jobs.wait_for, [gate, gate + "2", gate + "3"])
        with contextlib.closing(values):
            open_gate(gate)
            assert next(values) == "waited"
        open_gate(gate + "2")
        assert not os.path.exists(gate + "3")
