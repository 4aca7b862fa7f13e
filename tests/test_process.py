"""Process pools: slots, workers that are killed or outlive their caller, and nothing left behind."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from progress_executor import ProcessPoolProgressExecutor

from . import jobs
from .conftest import SHM, START_METHODS, make_executor, open_gate, segments, until
from .test_futures import watch

needs_shm = pytest.mark.skipif(not os.path.isdir(SHM), reason=f"{SHM} is where Linux shows shared memory")


@pytest.mark.parametrize("method", START_METHODS)
def test_progress_and_cancellation_work_with_every_start_method(method, gate):
    with make_executor(method) as executor:
        counted = executor.submit(jobs.count, 1000)
        states = watch(counted)
        assert counted.result() == 1000
        assert states[-1][1] == {"n": 1000, "total": 1000, "status": "done"}
        future = executor.submit(jobs.step_until, gate)
        until(lambda: future.state["n"] > 0)
        future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()


@needs_shm
def test_the_segments_size_does_not_depend_on_the_number_of_tasks():
    sizes = []
    for tasks in (10, 2000):
        with ProcessPoolProgressExecutor(2) as executor:
            futures = [executor.submit(jobs.count, 3) for _ in range(tasks)]
            sizes.append(list(segments().values()))
            assert sum(future.result() for future in futures) == 3 * tasks
    assert len(sizes[0]) == 1
    assert sizes[0] == sizes[1]


@needs_shm
def test_ten_thousand_tasks_leave_nothing_behind():
    threads = threading.active_count()
    with ProcessPoolProgressExecutor(2) as executor:
        assert sum(executor.map(jobs.count, [3] * 10_000)) == 30_000
    assert not segments()
    assert not multiprocessing.active_children()
    assert threading.active_count() == threads


@needs_shm
def test_there_is_no_segment_before_the_first_task():
    with ProcessPoolProgressExecutor(2):
        assert not segments()


@needs_shm
def test_a_segment_is_readable_by_its_owner_only():
    with ProcessPoolProgressExecutor(1) as executor:
        executor.submit(jobs.add, 1).result()
        (name,) = segments()
        assert os.stat(os.path.join(SHM, name)).st_mode & 0o077 == 0


@needs_shm
@pytest.mark.parametrize("wait", [True, False])
def test_the_segment_goes_when_the_last_task_has_ended(wait, gate):
    executor = ProcessPoolProgressExecutor(1)
    future = executor.submit(jobs.wait_for, gate)
    open_gate(gate)
    executor.shutdown(wait=wait)
    assert future.result() == "waited"
    until(lambda: not segments())


def test_a_finished_task_does_not_wait_for_the_caller(tmp_path):
    files = [str(tmp_path / str(n)) for n in range(40)]
    with ProcessPoolProgressExecutor(2) as executor:
        for file in files:
            executor.submit(touch, file)
        until(lambda: all(map(os.path.exists, files)))


def touch(file, progress):
    progress.update()
    with open(file, "w"):
        pass


def test_a_task_that_was_cancelled_in_the_call_queue_is_not_entered(gate, tmp_path):
    with ProcessPoolProgressExecutor(1) as executor:
        blocker = executor.submit(jobs.step_until, gate)
        until(lambda: blocker.state["n"] > 0)
        entered = tmp_path / "entered"
        queued = executor.submit(jobs.note_and_wait, str(entered), gate)
        until(queued.running)  # that is: in the call queue
        assert queued.state["status"] == "pending"
        assert queued.cancel()
        assert not queued.cancelled()
        open_gate(gate)
        with pytest.raises(concurrent.futures.CancelledError):
            queued.result()
        assert not entered.exists()
        assert queued.state == {"n": 0, "total": None, "status": "cancelled"}


def test_slots_are_given_back_whatever_becomes_of_a_task():
    with ProcessPoolProgressExecutor(1) as executor:
        for round_ in range(20):
            futures = [
                executor.submit(jobs.add, round_),
                executor.submit(jobs.fail),
                executor.submit(jobs.add, lambda: None),
                executor.submit(jobs.count, 3),
                executor.submit(lambda: None),
            ]
            cancelled = executor.submit(jobs.count, 3)
            cancelled.cancel()
            concurrent.futures.wait([*futures, cancelled])
        assert executor._arena._free.qsize() == executor._arena._size


def test_progress_of_one_task_never_shows_in_the_next(gate):
    with ProcessPoolProgressExecutor(1) as executor:
        for n in range(50):
            executor.submit(jobs.set_all, n, n, "something").result()
            plain = executor.submit(jobs.add, n)
            plain.result()
            assert plain.state == {"n": 0, "total": None, "status": "done"}


def test_late_updates_of_a_tasks_threads_do_not_touch_the_next_task():
    with ProcessPoolProgressExecutor(1) as executor:
        executor.submit(leave_a_thread_counting).result()
        for _ in range(20):
            future = executor.submit(jobs.count, 100)
            future.result()
            assert future.state == {"n": 100, "total": 100, "status": "done"}


def leave_a_thread_counting(progress):
    def count_on():
        while True:
            progress.update()
            progress.total = 7
            time.sleep(0)

    threading.Thread(target=count_on, daemon=True).start()
    progress.update()


@needs_shm
def test_a_worker_that_is_killed_breaks_the_pool_as_in_the_standard_library(gate, tmp_path):
    with ProcessPoolProgressExecutor(2) as executor:
        other = executor.submit(jobs.step_until, gate)
        until(lambda: other.state["n"] > 0)
        killed = executor.submit(jobs.kill_self, str(tmp_path / "kill"))
        pending = [executor.submit(jobs.count, 3) for _ in range(20)]
        states = watch(killed)
        cancelled = executor.submit(jobs.count, 3)
        cancelled.cancel()
        open_gate(tmp_path / "kill")
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            killed.result()
        assert states[-1][1] == {"n": 7, "total": None, "status": "failed"}
        for future in [other, *pending]:
            with pytest.raises(concurrent.futures.process.BrokenProcessPool):
                future.result(timeout=10)
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            executor.submit(jobs.add, 1)
    assert not segments()


CALLER = """
import multiprocessing, sys, time
from progress_executor import *
def work(progress):
    while True:
        progress.update()
        time.sleep(0.001)
if __name__ == "__main__":
    executor = ProcessPoolProgressExecutor(2, multiprocessing.get_context(sys.argv[1]))
    futures = [executor.submit(work) for _ in range(4)]
    while not futures[0].state["n"] or not futures[1].state["n"]:
        time.sleep(0.001)
    print(*executor._processes, flush=True)
    futures[0].result()
"""


@needs_shm
@pytest.mark.parametrize("method", START_METHODS)
def test_workers_end_when_their_caller_is_killed(method, tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    with subprocess.Popen([sys.executable, script, method], stdout=subprocess.PIPE, text=True) as caller:
        workers = [int(pid) for pid in caller.stdout.readline().split()]
        caller.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    until(lambda: not any(alive(pid) for pid in workers), "the end of the workers")
    until(lambda: not segments(caller.pid), "the end of the segment")


@needs_shm
@pytest.mark.parametrize("method", START_METHODS)
def test_ctrl_c_ends_everything_quietly(method, tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    arguments = [sys.executable, script, method]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as caller:
        workers = [int(pid) for pid in caller.stdout.readline().split()]
        os.killpg(caller.pid, signal.SIGINT)
        _, errors = caller.communicate(timeout=30)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not any(alive(pid) for pid in workers)
    assert not segments(caller.pid)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or after
        return False


def test_workers_ignore_sigint_and_die_of_sigterm():
    with ProcessPoolProgressExecutor(1) as executor:
        assert executor.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
        assert executor.submit(signal.getsignal, signal.SIGTERM).result() == signal.SIG_DFL
        assert signal.SIGINT not in executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()


def test_an_initializer_of_the_user_comes_after_ours():
    with ProcessPoolProgressExecutor(1, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)) as executor:
        assert executor.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_DFL
