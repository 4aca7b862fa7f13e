"""Deadlines: a task that runs for too long, or shows no progress, is stopped, and its future times out."""

import asyncio
import concurrent.futures
import gc
import os
import threading
import time
import traceback
import weakref
from fractions import Fraction

import pytest

from progress_executor import (
    ProgressGroup,
    SyncProgressExecutor,
    ThreadPoolProgressExecutor,
    Updater,
    WorkerDied,
    _deadlines,
    _slots,
)
from progress_executor._monitor import INTERVAL, Monitor
from progress_executor._slots import Slot
from progress_executor._speedups._layout import PAUSED_SECONDS, PAUSED_SINCE
from progress_executor._tasks import Task

from . import jobs
from .conftest import CONCURRENT, POOLS, START_METHODS, make_executor, open_gate, until
from .test_exit import run

LATE = "^the task ran for longer than 0.2 s$"
STALLED = "^no progress for 0.3 s$"
GREAT = 1000.0


class Clock:
    """Both clocks, as deadlines read them."""

    def __init__(self, monkeypatch):
        self.passed = self.was_set = 0.0
        monkeypatch.setattr(_deadlines, "monotonic", lambda: time.monotonic() + self.passed)
        monkeypatch.setattr(_deadlines, "time", lambda: time.time() + self.passed + self.was_set)


@pytest.fixture
def clock(monkeypatch):
    """Lets time pass for deadlines; or sets the time of day, as an administrator does."""
    return Clock(monkeypatch)


@pytest.fixture
def looks(monkeypatch):
    """The tasks that the timer has looked at, in order."""
    seen = []
    look = _deadlines._Deadline.look

    def note(self, task, before):
        answer = look(self, task, before)
        seen.append(task)
        return answer

    monkeypatch.setattr(_deadlines._Deadline, "look", note)
    return seen


def wait_for_looks(looks, future, count=2):
    """Until the timer has looked at it anew: of two looks at least one began after this was called."""
    before = len(looks)
    until(lambda: looks[before:].count(future._task) >= count)


def is_watched(future):
    return future._task in _deadlines._timer._monitors.get(future._task.monitor, ())


def start(future):
    until(lambda: future.state["n"])


# What passes


def test_a_task_that_runs_for_too_long_is_stopped_and_times_out(executor):
    began = time.monotonic()
    future = executor.submit(jobs.count_slowly, 10**6, 0.001)
    future.set_deadline(timeout=0.2)
    with pytest.raises(TimeoutError, match=LATE):
        future.result()
    assert time.monotonic() - began > 0.19
    assert future.state["status"] == "failed"
    assert 0 < future.state["n"] < 10**6
    assert future.done()
    assert not future.cancelled()
    assert future.cancel_requested()


def test_the_task_is_told_which_deadline_has_passed(executor, tmp_path):
    future = executor.submit(jobs.say_why_it_stops, str(tmp_path / "said"))
    future.set_deadline(timeout=0.2)
    with pytest.raises(TimeoutError, match=LATE):
        future.result()
    assert (tmp_path / "said").read_text() == "('the task ran for longer than 0.2 s',)"


def test_a_task_that_shows_no_progress_is_stopped_and_times_out(executor):
    future = executor.submit(jobs.report_and_hang, 7)
    future.set_deadline(stall=0.3)
    with pytest.raises(TimeoutError, match=STALLED):
        future.result()
    assert future.state == {"n": 7, "total": None, "status": "failed"}


@pytest.mark.parametrize("start_method", START_METHODS)
def test_both_deadlines_pass_however_processes_are_started(start_method):
    with make_executor(start_method) as executor:
        slow, hung = executor.submit(jobs.count_slowly, 10**6, 0.001), executor.submit(jobs.report_and_hang, 7)
        slow.set_deadline(timeout=0.2)
        hung.set_deadline(stall=0.3)
        assert str(slow.exception()) in LATE
        assert str(hung.exception()) in STALLED


def test_of_both_deadlines_the_first_one_passes(pool):
    slow, hung = pool.submit(jobs.count_slowly, 10**6, 0.001), pool.submit(jobs.report_and_hang, 7)
    slow.set_deadline(0.2, GREAT)
    hung.set_deadline(GREAT, 0.3)
    with pytest.raises(TimeoutError, match=LATE):
        slow.result()
    with pytest.raises(TimeoutError, match=STALLED):
        hung.result()


def test_a_deadline_passes_though_nobody_waits(pool):
    slow, hung = pool.submit(jobs.count_slowly, 10**6, 0.001), pool.submit(jobs.report_and_hang, 7)
    slow.set_deadline(timeout=0.2)
    hung.set_deadline(stall=0.3)
    until(lambda: slow.done() and hung.done())
    assert str(slow.exception()) in LATE
    assert str(hung.exception()) in STALLED


@pytest.mark.parametrize("kind", CONCURRENT)
def test_a_deadline_passes_though_the_executor_was_shut_down_and_dropped(kind):
    executor = make_executor(kind)
    future = executor.submit(jobs.count_slowly, 10**6, 0.001)
    start(future)
    executor.shutdown(wait=False)
    future.set_deadline(timeout=0.2)
    del executor
    with pytest.raises(TimeoutError, match=LATE):
        future.result()


@pytest.mark.parametrize("kind", POOLS)
def test_a_program_that_ends_without_waiting_ends_when_the_deadline_has_passed(kind):
    run(
        """
        future = make_executor(sys.argv[1]).submit(jobs.report_and_hang, 7)
        future.set_deadline(stall=0.3)
        """,
        kind,
    )


def test_a_deadline_that_is_set_while_the_task_runs_counts_from_its_start(pool, clock):
    future = pool.submit(jobs.step_until, "")
    start(future)
    clock.passed += GREAT
    future.set_deadline(timeout=GREAT)
    with pytest.raises(TimeoutError, match="longer than 1000 s"):
        future.result()


def test_a_text_is_a_sign_of_progress(executor):
    future = executor.submit(jobs.say_slowly, 10, 0.1)
    future.set_deadline(stall=0.7)
    assert future.result() == 10


def test_a_stall_that_is_set_while_the_task_hangs_counts_from_now(pool, clock, looks, gate):
    future = pool.submit(jobs.linger_when_cancelled, gate)
    start(future)
    clock.passed += GREAT
    future.set_deadline(stall=GREAT)
    wait_for_looks(looks, future)
    assert not future.cancel_requested()
    future.cancel()
    open_gate(gate)


def test_the_time_in_the_queue_does_not_count(pool, gate, clock, looks):
    blockers = [pool.submit(jobs.step_until, gate) for _ in range(6)]
    blockers[0].set_deadline(timeout=GREAT * GREAT)
    future = pool.submit(jobs.count_slowly, 30, 0.01)
    future.set_deadline(timeout=GREAT, stall=GREAT)
    for _ in range(3):
        clock.passed += GREAT
        wait_for_looks(looks, blockers[0])
    open_gate(gate)
    assert future.result() == 30
    for blocker in blockers:
        blocker.result()


def test_the_time_for_which_it_stands_still_does_not_count(pool, gate, clock, looks):
    future = pool.submit(jobs.step_until, gate)
    future.set_deadline(timeout=GREAT, stall=GREAT)
    start(future)
    future.pause()
    until(lambda: future.state["status"] == "paused")
    wait_for_looks(looks, future)
    stood = future._task.paused_seconds()
    with Stood(future, 2 * GREAT):
        clock.passed = 2 * GREAT
        wait_for_looks(looks, future)
        assert not future.cancel_requested()
    assert future._task.paused_seconds() >= stood
    clock.passed = 0
    future.resume()
    open_gate(gate)
    assert future.result() > 0


class Stood:
    """Has a task say that it stood still for so much longer."""

    def __init__(self, future, seconds):
        self.task, self.seconds = future._task, seconds

    def __enter__(self):
        stood = self.task.paused_seconds
        self.task.paused_seconds = lambda: stood() + self.seconds

    def __exit__(self, *exc_info):
        del self.task.paused_seconds


def test_a_pending_task_that_is_cancelled_is_cancelled(pool, gate):
    blockers = [pool.submit(jobs.step_until, gate) for _ in range(6)]
    future = pool.submit(jobs.count, 3)
    future.set_deadline(timeout=0.001)
    future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    open_gate(gate)
    for blocker in blockers:
        blocker.result()


# What becomes of it


def test_a_task_that_is_asked_to_stop_runs_until_it_has_stopped(pool, gate):
    future = pool.submit(jobs.linger_when_cancelled, gate)
    future.set_deadline(timeout=0.2)
    until(future.cancel_requested)
    assert future.running()
    open_gate(gate)
    with pytest.raises(TimeoutError, match=LATE):
        future.result()


def test_a_value_that_is_returned_all_the_same_is_kept(executor):
    future = executor.submit(jobs.return_when_cancelled, "value")
    future.set_deadline(timeout=0.2)
    assert future.result() == "value"
    assert future.cancel_requested()
    assert future.state["status"] == "done"


def test_a_task_that_never_reports_is_not_stopped_and_keeps_its_value(pool, gate):
    future = pool.submit(jobs.wait_for, gate)
    future.set_deadline(timeout=0.2, stall=0.3)
    until(future.cancel_requested)
    assert future.running()
    open_gate(gate)
    assert future.result() == "waited"


def test_what_a_task_raises_of_its_own_is_the_outcome(executor):
    future = executor.submit(jobs.fail_when_cancelled)
    future.set_deadline(timeout=0.2)
    with pytest.raises(ValueError, match="on purpose"):
        future.result()
    assert future.cancel_requested()


def test_a_worker_that_dies_at_the_deadline_fails_its_task(gate):
    with make_executor("process") as executor:
        future = executor.submit(jobs.die, "exit_at_once", gate)
        future.set_deadline(timeout=0.2)
        until(future.cancel_requested)
        open_gate(gate)
        with pytest.raises(WorkerDied, match="exit code 0"):
            future.result()
        assert executor.submit(jobs.add, 1).result() == 2
    until(lambda: _deadlines._timer._thread is None)


def test_who_cancels_before_the_deadline_gets_a_cancelled_future(pool, gate, clock, looks):
    future = pool.submit(jobs.linger_when_cancelled, gate)
    future.set_deadline(timeout=GREAT)
    other = pool.submit(jobs.step_until, gate)
    other.set_deadline(timeout=GREAT * GREAT)
    start(future)
    assert future.cancel()
    clock.passed += 2 * GREAT
    wait_for_looks(looks, other)
    open_gate(gate)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert future.cancelled()
    assert future.state["status"] == "cancelled"


def test_who_cancels_after_the_deadline_gets_a_future_that_timed_out(pool, gate):
    future = pool.submit(jobs.linger_when_cancelled, gate)
    future.set_deadline(timeout=0.2)
    until(future.cancel_requested)
    assert future.cancel()
    open_gate(gate)
    with pytest.raises(TimeoutError, match=LATE):
        future.result()


def test_the_cause_of_the_timeout_shows_where_the_task_was(local_pool):
    future = local_pool.submit(jobs.report_and_hang, 7)
    future.set_deadline(stall=0.3)
    error = future.exception()
    assert isinstance(error.__cause__, asyncio.CancelledError)
    assert "report_and_hang" in "".join(traceback.format_exception(error))


def test_waiters_and_callbacks_see_a_failed_future(executor):
    future, called = executor.submit(jobs.report_and_hang, 7), threading.Event()
    states = []
    future.add_progress_callback(lambda old, new: states.append(new["status"]))
    future.add_done_callback(lambda _: called.set())
    future.set_deadline(stall=0.3)
    assert concurrent.futures.wait([future]).done == {future}
    assert called.wait(30)
    assert list(concurrent.futures.as_completed([future])) == [future]
    assert states[-1] == "failed"
    assert states.count("failed") == 1


def test_a_bar_ends_where_the_task_was(executor, tmp_path):
    future = executor.submit(jobs.report_and_hang, 7)
    with open(tmp_path / "bar", "w+") as file:
        future.add_tqdm_callback(init_kwargs={"file": file})
        future.set_deadline(stall=0.3)
        assert future.exception()
        file.seek(0)
        line = file.read()
    assert "7it" in line
    assert "failed" in line


def test_a_group_counts_it_as_failed(executor):
    good, hung = executor.submit(jobs.count, 3), executor.submit(jobs.report_and_hang, 7)
    hung.set_deadline(stall=0.3)
    group = ProgressGroup([good, hung])
    with pytest.raises(TimeoutError, match=STALLED):
        group.result()
    state = group.state
    assert (state["status"], state["done"], state["failed"], state["cancelled"]) == ("failed", 1, 1, 0)


@pytest.mark.parametrize(
    "how",
    [
        lambda future: future,
        lambda future: future.check_for_progress(),
        lambda future: asyncio.wait_for(future, 60),
        asyncio.wrap_future,
        lambda future: asyncio.create_task(future),
    ],
)
def test_who_awaits_gets_the_timeout(executor, how):
    async def main():
        future = executor.submit(jobs.report_and_hang, 7)
        future.set_deadline(stall=0.3)
        with pytest.raises(TimeoutError, match=STALLED):
            await how(future)

    asyncio.run(main(), debug=False)


# Setting it


def test_a_deadline_that_is_set_again_replaces_the_earlier_one(pool, clock, looks):
    future = pool.submit(jobs.step_until, "")
    future.set_deadline(timeout=GREAT)
    start(future)
    future.set_deadline(timeout=3 * GREAT)
    clock.passed += 2 * GREAT
    wait_for_looks(looks, future)
    assert not future.cancel_requested()
    clock.passed += 2 * GREAT
    with pytest.raises(TimeoutError, match="longer than 3000 s"):
        future.result()


def test_a_deadline_that_is_removed_does_not_pass(pool, clock, looks, gate):
    other, future = pool.submit(jobs.step_until, gate), pool.submit(jobs.step_until, gate)
    other.set_deadline(timeout=GREAT * GREAT)
    future.set_deadline(timeout=GREAT, stall=GREAT)
    start(future)
    future.set_deadline()
    clock.passed += 2 * GREAT
    wait_for_looks(looks, other)
    assert not future.cancel_requested()
    open_gate(gate)
    assert future.result()


@pytest.mark.parametrize("replace", [{}, {"timeout": GREAT}])
def test_a_deadline_that_passes_while_it_is_replaced_does_not_count(pool, monkeypatch, gate, replace):
    future = pool.submit(jobs.step_until, gate)
    look = _deadlines._Deadline.look

    def look_and_replace(self, task, before):
        answer = look(self, task, before)
        if answer[1] is not None:
            monkeypatch.setattr(_deadlines._Deadline, "look", look)
            future.set_deadline(**replace)
            replaced.set()
        return answer

    replaced = threading.Event()
    monkeypatch.setattr(_deadlines._Deadline, "look", look_and_replace)
    future.set_deadline(timeout=0.2)
    assert replaced.wait(30)
    n = future.state["n"]
    until(lambda: future.state["n"] > n)
    assert not future.cancel_requested()
    open_gate(gate)
    assert future.result()


def test_a_deadline_of_a_done_future_has_no_effect(executor):
    future = executor.submit(jobs.count, 3)
    future.result()
    future.set_deadline(timeout=1e-9, stall=1e-9)
    assert not is_watched(future)
    assert future.result() == 3
    assert not future.cancel_requested()


@pytest.mark.parametrize("name", ["timeout", "stall"])
@pytest.mark.parametrize("value", [0, -1, -0.5, float("inf"), float("nan"), 10**400])
def test_what_is_not_positive_and_finite_is_an_error_that_changes_nothing(name, value):
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.step_until, "")
        future.set_deadline(timeout=0.2)
        with pytest.raises(ValueError, match=f"^{name} must be a positive and finite number"):
            future.set_deadline(**{name: value})
        with pytest.raises(TimeoutError, match=LATE):
            future.result()


@pytest.mark.parametrize("name", ["timeout", "stall"])
@pytest.mark.parametrize("value", ["1", b"1", [], 1j, object()])
def test_what_is_no_number_is_an_error(name, value):
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.count, 3)
        with pytest.raises(TypeError, match=f"^{name} must be a number of seconds or None, not {type(value).__name__}$"):
            future.set_deadline(**{name: value})
        assert future.result() == 3
        with pytest.raises(TypeError):
            future.set_deadline(**{name: value})


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "2.5"), (1, "1"), (Fraction(1, 2), "0.5"), (0.1 + 0.2, "0.3"), (12345678, "12345678")]
)
def test_the_message_says_the_seconds_as_they_were_given(value, text, clock):
    with ThreadPoolProgressExecutor() as executor:
        future = executor.submit(jobs.step_until, "")
        start(future)
        clock.passed += 10**9
        future.set_deadline(timeout=value)
        with pytest.raises(TimeoutError, match=f"^the task ran for longer than {text} s$"):
            future.result()


def test_many_threads_may_set_deadlines_at_once():
    with ThreadPoolProgressExecutor(8) as executor, ThreadPoolProgressExecutor(8) as setters:
        for _ in range(20):
            futures = [executor.submit(jobs.count_slowly, 10**6, 0.001) for _ in range(8)]

            def set_some(number, futures=futures):
                for future in futures[number:] + futures[:number]:
                    future.set_deadline(timeout=0.01 * (1 + number % 3), stall=GREAT)

            list(setters.map(set_some, range(8)))
            for future in futures:
                assert isinstance(future.exception(), TimeoutError)
    until(lambda: _deadlines._timer._thread is None)


def test_tasks_that_end_while_their_deadline_passes_keep_their_values_or_time_out():
    with ThreadPoolProgressExecutor(4) as executor:
        kept = 0
        for round_ in range(100):
            futures = [executor.submit(jobs.count_slowly, 5, 0.001) for _ in range(4)]
            for future in futures:
                future.set_deadline(timeout=0.004 + 0.00004 * round_)
            for future in futures:
                error = future.exception()
                if error is None:
                    kept += 1
                    assert future.result() == 5
                    assert future.state == {"n": 5, "total": 5, "status": "done"}
                else:
                    assert isinstance(error, TimeoutError)
                    assert future.state["status"] == "failed"
                    assert not future.cancelled()


# The timer


def timers():
    return [thread for thread in threading.enumerate() if thread.name == "progress_executor-deadlines"]


def test_one_daemon_thread_watches_all_and_ends_when_there_is_nothing_to_watch(gate):
    until(lambda: not timers())
    with make_executor("thread") as threads, make_executor("process") as processes, make_executor("sync") as sync:
        futures = [executor.submit(jobs.step_until, gate) for executor in (threads, processes) for _ in range(5)]
        futures.append(sync.submit(jobs.count, 3))
        assert not timers()
        for future in futures:
            future.set_deadline(timeout=GREAT)
        (timer,) = timers()
        assert timer.daemon
        open_gate(gate)
        for future in futures:
            future.result()
    until(lambda: not timers())


@pytest.mark.parametrize("end", ["removed", "cancelled"])
def test_the_timer_ends_when_the_only_deadline_is_removed_or_its_task_was_cancelled(end, gate):
    with ThreadPoolProgressExecutor() as executor:
        future = executor.submit(jobs.linger_when_cancelled, gate)
        future.set_deadline(timeout=GREAT)
        assert timers()
        future.set_deadline() if end == "removed" else future.cancel()
        until(lambda: not timers())
        future.cancel()
        open_gate(gate)


def test_pending_tasks_are_not_looked_at(gate, looks):
    with ThreadPoolProgressExecutor(1) as executor:
        futures = [executor.submit(jobs.step_until, gate) for _ in range(5000)]
        for future in futures:
            future.set_deadline(timeout=GREAT, stall=GREAT)
        wait_for_looks(looks, futures[0], 5)
        assert set(looks) == {futures[0]._task}
        open_gate(gate)
        concurrent.futures.wait(futures)
    until(lambda: not timers())


def test_the_start_of_a_pending_task_is_seen_soon(gate, monkeypatch):
    monkeypatch.setattr(_deadlines, "_AT_MOST", 2 * GREAT)  # it does not wake for anything else
    with ThreadPoolProgressExecutor(1) as executor:
        blocker = executor.submit(jobs.step_until, gate)
        blocker.set_deadline(timeout=GREAT)
        start(blocker)
        future = executor.submit(jobs.step_until, "")
        future.set_deadline(timeout=0.2)
        time.sleep(2 * INTERVAL)
        open_gate(gate)
        with pytest.raises(TimeoutError, match=LATE):
            future.result()
        monkeypatch.undo()
        executor.submit(jobs.step_until, "").set_deadline(timeout=0.1)  # wakes it


def test_the_timer_sleeps_as_long_as_nothing_is_due(gate, looks):
    with ThreadPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.step_until, gate)
        start(future)
        future.set_deadline(timeout=GREAT)
        until(lambda: looks)
        time.sleep(4 * INTERVAL)
        assert len(looks) <= 2
        open_gate(gate)


def test_a_future_goes_though_its_task_had_a_deadline(gate):
    with ThreadPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.step_until, gate)
        future.set_deadline(timeout=GREAT)
        open_gate(gate)
        future.result()
        reference = weakref.ref(future)
        del future
        until(lambda: reference() is None)


def test_a_future_that_never_runs_goes_and_the_timer_with_it():
    executor = SyncProgressExecutor()
    future = executor.submit(jobs.count, 3)
    future.set_deadline(timeout=GREAT)
    reference = weakref.ref(future)
    del future, executor
    until(lambda: gc.collect() is None or reference() is None)
    until(lambda: not timers())


def test_a_deadline_does_not_keep_the_program_from_exiting():
    began = time.monotonic()
    run(
        """
        executor = make_executor("sync")  # nobody waits for it: it never runs
        future = executor.submit(jobs.count, 3)
        future.set_deadline(timeout=3600)
        """
    )
    assert time.monotonic() - began < 60


def test_a_task_that_cannot_be_asked_does_not_end_the_timer(caplog, monkeypatch, gate):
    with ThreadPoolProgressExecutor(2) as executor:
        bad, good = executor.submit(jobs.step_until, gate), executor.submit(jobs.step_until, "")
        start(bad)

        def refuse(reason):
            raise RuntimeError("its loop is closed")

        monkeypatch.setattr(bad._task, "request_cancel", refuse)
        bad.set_deadline(timeout=0.1)
        good.set_deadline(timeout=0.3)
        with pytest.raises(TimeoutError):
            good.result()
        open_gate(gate)
        assert bad.result()
    assert caplog.text.count("RuntimeError: its loop is closed") == 1


def test_the_deadline_of_a_task_whose_board_is_locked_can_be_set():
    with ThreadPoolProgressExecutor() as executor:
        future = executor.submit(jobs.step_until, "")
        for _ in range(100):
            with executor._monitor.lock:  # as a finalizer may do that is called there
                future.set_deadline(timeout=GREAT, stall=GREAT)
        future.set_deadline(timeout=0.1)
        assert isinstance(future.exception(), TimeoutError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_none_of_its_parents_deadlines_and_may_have_its_own(tmp_path):
    run(
        """
        import faulthandler
        from progress_executor import _deadlines

        gate = sys.argv[1]
        with make_executor("thread", 1) as executor:
            future = executor.submit(jobs.step_until, gate)
            future.set_deadline(timeout=3600)
            with _deadlines._timer._lock:  # as the timer's thread may have it, which the child has not
                child = os.fork()
            if not child:
                faulthandler.dump_traceback_later(30, exit=True)
                assert not _deadlines._timer._monitors
                assert _deadlines._timer._thread is None
                with make_executor("thread", 1) as own:
                    late = own.submit(jobs.step_until, "")
                    late.set_deadline(timeout=0.2)
                    os._exit(3 if isinstance(late.exception(), TimeoutError) else 4)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
            open(gate, "w").close()
            assert future.result()
        """,
        tmp_path / "gate",
        warnings=["-W", "ignore"],
    )


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_task_in_a_worker_process_may_have_deadlines_of_its_own(start_method):
    with make_executor(start_method) as executor:
        future = executor.submit(nested)
        future.set_deadline(timeout=GREAT)
        assert future.result() == "the task ran for longer than 0.2 s"


def nested():
    with ThreadPoolProgressExecutor() as executor:
        future = executor.submit(jobs.step_until, "")
        future.set_deadline(timeout=0.2)
        return str(future.exception())


# The clocks: without the timer, whose looks are made here one by one


class Looked:
    """A task that reports into a slot, and its deadline; time passes where it is told to."""

    def __init__(self, monkeypatch, **seconds):
        self.now = 5000.0
        self.day = 1e9
        monkeypatch.setattr(_deadlines, "monotonic", lambda: self.now)
        monkeypatch.setattr(_deadlines, "time", lambda: self.day)
        self.task = Task(Monitor(), (print, (), {}))
        self.seconds = {"timeout": None, "stall": None, "kill_after": None, **seconds}
        self.set_deadline()

    def set_deadline(self):
        self.deadline = _deadlines._Deadline(self.task, **self.seconds)
        self.before = self.now

    def start(self):
        self.slot = Slot()
        self.task.start(self.slot, self.day)

    def let_pass(self, seconds):
        self.now += seconds
        self.day += seconds

    def look(self):
        before, self.before = self.before, self.now
        if self.task not in self.task.monitor.running:  # the timer does not see it
            return INTERVAL, None
        return self.deadline.look(self.task, before)

    def after(self, seconds):
        """What has passed so many seconds later."""
        self.let_pass(seconds)
        return self.look()[1]


@pytest.fixture
def looked(monkeypatch):
    return lambda **seconds: Looked(monkeypatch, **seconds)


@pytest.mark.parametrize("step", [1e6, -1e6])
@pytest.mark.parametrize("when", ["pending", "between start and look", "running"])
def test_a_clock_that_is_set_does_not_time_out_a_task_nor_let_it_go_on(looked, step, when):
    it = looked(timeout=10)
    assert it.after(100) is None
    if when == "pending":
        it.day += step
    it.start()
    if when == "between start and look":
        it.day += step
    assert it.after(0.1) is None
    if when == "running":
        it.day += step
    assert it.after(9.5) is None
    assert it.after(0.51) is not None


def test_a_look_that_comes_late_counts_all_the_time_since_the_start(looked):
    it = looked(timeout=10)
    it.start()
    assert it.after(60) is not None


def test_a_task_that_runs_already_has_run_since_its_start(looked):
    it = looked(timeout=10)
    it.start()
    it.let_pass(9)
    it.set_deadline()
    assert it.after(0) is None
    assert it.after(1) is not None


def test_a_task_that_is_run_again_begins_anew(looked):
    it = looked(timeout=10)
    it.start()
    assert it.after(0.1) is None
    assert it.after(9) is None
    it.task.started_at = it.day
    assert it.after(5) is None
    assert it.after(5) is not None


@pytest.mark.parametrize("field", ["n", "total", "status"])
def test_each_change_of_the_state_is_progress(looked, field):
    it = looked(stall=0.3)
    it.start()
    progress = Updater(it.slot.buffer)
    assert it.after(0.1) is None
    for value in range(1, 20):
        setattr(progress, field, str(value) if field == "status" else value)
        assert it.after(0.1) is None
        assert it.after(0.2) is None
    assert it.after(0.2) is not None


def test_what_the_state_does_not_show_is_progress(looked):
    it = looked(stall=0.3)
    it.start()
    progress = Updater(it.slot.buffer)
    part = progress.sub(3)
    assert it.after(0.1) is None
    for _ in range(20):
        part.update()
        assert it.after(0.2) is None
    assert it.after(0.2) is None
    assert it.after(0.2) is not None


def test_a_start_is_progress(looked):
    it = looked(stall=0.3)
    for _ in range(10):
        assert it.after(0.2) is None
    it.start()
    assert it.after(0.2) is None
    assert it.after(0.2) is None
    assert it.after(0.2) is not None


def test_time_in_which_the_machine_stood_still_is_no_stall(looked):
    it = looked(stall=0.5)
    it.start()
    assert it.after(0.1) is None
    assert it.after(3600) is None
    assert it.after(0.2) is None
    assert it.after(0.2) is not None


def test_what_stands_still_is_not_stalled_and_goes_on_where_it_was(looked, monkeypatch):
    it = looked(timeout=10, stall=0.5)
    monkeypatch.setattr(_slots, "monotonic", lambda: it.now)
    it.start()
    assert it.after(0.1) is None
    it.task.pause(True)
    words = it.slot.buffer.cast("d")
    words[PAUSED_SINCE] = it.now
    for _ in range(100):
        assert it.after(0.2) is None
        it.day -= 1000  # somebody sets the clock
    words[PAUSED_SECONDS], words[PAUSED_SINCE] = 20, 0
    it.task.pause(False)
    assert it.after(0.1) is None
    assert it.after(0.2) is None
    assert it.after(0.2) is None
    assert it.after(0.2) == "no progress for 0.5 s"


def test_the_next_look_is_when_something_is_due(looked):
    it = looked(timeout=10)
    it.task.monitor.running.add(it.task)  # it has left for where it runs
    assert it.look()[0] == INTERVAL
    it.start()
    assert it.look()[0] == 1
    it.after(9.75)
    assert it.look()[0] == 0.25
    it = looked(timeout=10, stall=0.25)
    it.start()
    it.after(0)
    assert it.look()[0] == INTERVAL
    it.after(0.2)
    assert it.look()[0] == pytest.approx(0.05)
