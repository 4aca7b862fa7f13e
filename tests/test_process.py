"""Process pools: slots, workers that are killed or outlive their caller, and nothing left behind."""

import concurrent.futures
import contextlib
import errno
import gc
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from multiprocessing import resource_tracker

import pytest

from progress_executor import ProcessPoolProgressExecutor
from progress_executor.executors import process

from . import jobs
from .conftest import DEADLINE, SHM, START_METHODS, make_executor, needs_shm, open_gate, segments, session, until
from .test_futures import watch
from .test_killed import Unpicklable


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("method", START_METHODS)
def test_a_forked_child_of_a_task_writes_neither_into_its_state_nor_into_the_next_tasks(method, tmp_path, gate):
    with make_executor(method, 1) as executor:
        future = executor.submit(jobs.leave_a_child_writing, str(tmp_path / "written"), gate)
        future.result()
        assert future.state == {"n": 42, "total": None, "status": "done"}
        for _ in range(executor._arena._size + 1):
            following = executor.submit(jobs.count_slowly, 5, 0.001)
            following.result()
            assert following.state == {"n": 5, "total": 5, "status": "done"}
        open_gate(gate)


def leave_a_thread_counting(progress):
    def count_on():
        while True:
            progress.update()
            progress.total = 7
            time.sleep(0)

    threading.Thread(target=count_on, daemon=True).start()
    progress.update()


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


def test_leaving_waits_for_tasks_also_after_a_shutdown_that_did_not(gate):
    with ProcessPoolProgressExecutor(2) as executor:
        futures = [executor.submit(jobs.count_slowly, 5, 0.01) for _ in range(8)]
        executor.shutdown(wait=False)
    assert [future.result(timeout=0) for future in futures] == [5] * 8


def test_leaving_wakes_the_manager_thread_only_while_it_can_hear_it():
    heard = []
    with ProcessPoolProgressExecutor(1) as executor:
        executor.submit(jobs.add, 1).result()
        manager, wakeup = executor._executor_manager_thread, executor._executor_manager_thread_wakeup
        wake = wakeup.wakeup
        wakeup.wakeup = lambda: (heard.append(manager.is_alive()), wake())
    assert heard == [True]


def test_a_done_callback_that_waits_for_its_executor_is_told_so(caplog):
    executor = ProcessPoolProgressExecutor(1)
    future = executor.submit(jobs.count, 3)
    future.add_done_callback(lambda future: executor.shutdown())
    concurrent.futures.wait([future])
    executor.shutdown()
    assert not multiprocessing.active_children()


def test_a_done_callback_of_a_call_that_cannot_be_pickled_cannot_wait_for_its_executor_either():
    raised = []

    def leave(future):
        with pytest.raises(RuntimeError, match="its own executor"):
            executor.shutdown()
        raised.append(future)

    with ProcessPoolProgressExecutor(1) as executor:
        waiting, argument = executor.submit(time.sleep, 0.1), Unpicklable()
        future = executor.submit(jobs.add, argument)
        future.add_done_callback(leave)
        argument.fail.set()
        assert isinstance(future.exception(), TypeError)
        assert waiting.result() is None
        until(lambda: raised == [future])


def test_an_executor_that_goes_with_a_call_that_cannot_be_pickled_ends():
    for _ in range(20):
        executor = ProcessPoolProgressExecutor(1)
        argument = Unpicklable()
        futures = [executor.submit(jobs.add, argument) for _ in range(3)]
        executor.shutdown(wait=False)
        manager = executor._executor_manager_thread
        del executor
        argument.fail.set()
        for future in futures:
            assert isinstance(future.exception(DEADLINE), TypeError)
        manager.join(DEADLINE)
        assert not manager.is_alive()


class Finalized:
    """Calls `fn` at its end, in this process."""

    def __init__(self, fn):
        self.fn = fn

    def __del__(self):
        self.fn()

    def __reduce__(self):
        return int, ()


def test_an_argument_that_does_something_at_its_end_holds_no_lock_meanwhile():
    ending, cancelled, told = threading.Event(), threading.Event(), []

    def at_its_end():
        ending.set()
        told.append(cancelled.wait(DEADLINE))

    with ProcessPoolProgressExecutor(1) as executor:
        first = executor.submit(jobs.add, Finalized(at_its_end))
        pending = [executor.submit(time.sleep, 0.1) for _ in range(5)][-1]
        assert ending.wait(DEADLINE)
        assert pending.cancel()  # takes the lock that was held
        cancelled.set()
        assert first.result() == 1
    assert told == [True]


def test_a_call_that_turns_out_unpicklable_while_its_pool_ends_does_not_block_it():
    executor = ProcessPoolProgressExecutor(1)
    executor.submit(jobs.add, 1).result()
    manager, items, queue = executor._executor_manager_thread, executor._pending_work_items, executor._call_queue
    join, given_up, joined = queue.join_thread, threading.Event(), threading.Event()

    def pop(*args):  # the feeder thread's first step when it cannot pickle a call
        item = dict.pop(items, *args)
        given_up.set()
        assert joined.wait(DEADLINE)
        return item

    def join_thread():  # the manager thread's last step: it waits for the feeder thread
        joined.set()
        join()

    items.pop, queue.join_thread = pop, join_thread
    future = executor.submit(jobs.add, lambda: None)
    assert given_up.wait(DEADLINE)
    executor.shutdown(wait=False)
    assert isinstance(future.exception(timeout=DEADLINE), (pickle.PicklingError, AttributeError))
    manager.join()


def test_no_room_for_the_segment_is_an_error_of_submit(monkeypatch):
    def no_room(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with ProcessPoolProgressExecutor(1) as executor:
        with pytest.raises(OSError, match="no shared memory for the progress") as error:
            executor.submit(jobs.add, 1)
        assert error.value.errno == errno.ENOSPC
        assert not segments()


def test_a_full_dev_shm_does_not_kill_the_caller():
    code = "from progress_executor import *\nwith ProcessPoolProgressExecutor(1) as e:\n e.submit(abs, -1)"
    script = f"mount -t tmpfs -o size=8k tmpfs {SHM} && exec {sys.executable} -c '{code}'"
    try:
        result = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("unshare is not on this machine")
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip("this user may not mount anything")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"OSError: \[Errno 28\] no .*\(.*/dev/shm on Linux\): No space left on device", error)


def test_workers_that_end_after_their_number_of_tasks_are_always_replaced():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolProgressExecutor(2, context, max_tasks_per_child=3) as executor:
        futures = [executor.submit(jobs.add, n) for n in range(12)]
        assert [future.result(timeout=60) for future in futures] == list(range(1, 13))


@pytest.mark.parametrize("end", ["shutdown", "drop"])
def test_they_are_replaced_also_when_the_executor_was_shut_down_or_dropped(end):
    executor = ProcessPoolProgressExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    futures = [executor.submit(jobs.add, n) for n in range(4)]
    dropped = weakref.ref(executor)
    if end == "shutdown":
        executor.shutdown(wait=False)
    del executor
    assert [future.result(timeout=DEADLINE) for future in futures] == [1, 2, 3, 4]
    until(lambda: dropped() is None, "the end of the executor")


def test_a_worker_may_start_while_the_rest_of_a_result_is_on_its_way():
    """`submit` starts it, in another thread, while the manager thread asks all for their sentinels."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(2)]  # of workers that live
    workers = {}
    result = bytes(range(256)) * 1000
    sent = len(result).to_bytes(4, "big") + result

    class Worker:
        def __init__(self, number):
            self.number = number

        @property
        def sentinel(self):
            if len(workers) == 1:
                workers[1] = Worker(1)
                threading.Thread(target=write_rest).start()
            return pipes[self.number][0].fileno()

    def write_rest():
        with writer, open(writer.fileno(), "wb", closefd=False) as file:
            file.write(sent[1:])

    workers[0] = Worker(0)
    process._ResultReader.adopt(reader, workers)
    os.write(writer.fileno(), sent[:1])
    with contextlib.ExitStack() as stack:
        for connection in (reader, *pipes[0], *pipes[1]):
            stack.enter_context(connection)
        assert reader.recv_bytes() == result


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_may_end_while_submit_starts_another(method, monkeypatch):
    """The manager thread forgets it, while `submit` notes all that there are."""

    class Forgetting(weakref.WeakSet):
        def add(self, worker):
            super().add(worker)
            if len(executor._processes) == 2:
                forgotten.update([executor._processes.popitem()])

    forgotten = {}
    monkeypatch.setattr(process, "_workers", Forgetting())
    with make_executor(method) as executor:
        try:
            futures = [executor.submit(jobs.add, n) for n in range(2)]
        finally:
            executor._processes.update(forgotten)
        assert [future.result() for future in futures] == [1, 2]


def test_a_task_may_fork():
    with ProcessPoolProgressExecutor(1) as executor:
        assert executor.submit(fork_in_a_task).result() == 0


def fork_in_a_task():
    pid = os.fork()
    if not pid:
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def test_processes_of_the_users_own_forkserver_can_be_interrupted(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, signal\n"
        "from progress_executor import *\n"
        "def show(): print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('forkserver')\n"
        "    with ProcessPoolProgressExecutor(1, context) as executor: executor.submit(abs, 1).result()\n"
        "    process = context.Process(target=show); process.start(); process.join()\n"
    )
    result = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert result.stdout == "False\n"


SUBMITTING = """
import multiprocessing, sys, time
from progress_executor import *
def work(i, progress):
    for _ in progress(range(20)):
        time.sleep(0.01)
if __name__ == "__main__":
    print("begun", flush=True)
    while True:
        with ProcessPoolProgressExecutor(2, multiprocessing.get_context(sys.argv[1])) as executor:
            futures = [executor.submit(work, i) for i in range(int(sys.argv[2]))]
            futures[0].result()
"""


EXITING = re.compile(r"Exception ignored (on threading shutdown|in atexit callback|in: <module 'threading')")
"""How CPython begins to tell, in each version, what interrupted it after the program's own end."""


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1, 0.3])
@pytest.mark.parametrize(
    ("method", "tasks"),
    [("fork", 3), *(pytest.param(*many, marks=pytest.mark.slow) for many in [("fork", 3000), ("spawn", 300)])],
)
def test_ctrl_c_at_any_moment_of_starting_and_submitting_ends_the_pool(method, tasks, delay, presses, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SUBMITTING)
    arguments = [sys.executable, script, method, str(tasks)]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as caller:
        caller.stdout.readline()
        for _ in range(presses):
            time.sleep(delay)  # the moment is what is tried here
            os.killpg(caller.pid, signal.SIGINT)
        try:
            _, errors = caller.communicate(timeout=30)
        finally:
            caller.kill()
    assert "KeyboardInterrupt" in errors
    if presses == 1:
        assert errors.startswith("Traceback")
        assert errors.endswith("\nKeyboardInterrupt\n")
        assert errors.count("Traceback") == 1
    else:  # the second may meet the interpreter as it prints the first one's traceback ("lost sys.stderr"), or as it exits
        errors = EXITING.sub("", errors)
    assert not re.search(r"Exception ignored|Process \w+-\d+:|in _bootstrap|spawn_main|_process_worker", errors)
    until(lambda: not session(caller.pid), "the end of all processes")
    assert not segments(caller.pid)


@needs_shm
def test_ctrl_c_while_a_pool_is_made_leaves_no_semaphore(monkeypatch):
    register, made = resource_tracker.register, []

    def interrupted(name, kind):  # the semaphore is there, and nobody would remove it
        made.append(os.path.join(SHM, f"sem.{name.lstrip('/')}"))
        if len(made) == 1:
            assert os.path.exists(made[0])
            signal.raise_signal(signal.SIGINT)
        register(name, kind)

    monkeypatch.setattr(resource_tracker, "register", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ProcessPoolProgressExecutor(1, multiprocessing.get_context("spawn"))
    gc.collect()
    assert not any(map(os.path.exists, made))


LEFT_OPEN = """
import sys, time
from progress_executor import *
def work(progress):
    for _ in progress(range(int(sys.argv[2]))):
        time.sleep(0.01)
if __name__ == "__main__":
    executor = globals()[sys.argv[1]](2)
    futures = [executor.submit(work) for _ in range(3)]
    futures[0].add_progress_callback(lambda old, new: print(new["status"], flush=True))
"""


@pytest.mark.parametrize("cls", ["ProcessPoolProgressExecutor", "ThreadPoolProgressExecutor"])
def test_an_executor_left_open_at_exit_delivers_to_the_end(cls, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LEFT_OPEN)
    result = subprocess.run([sys.executable, script, cls, "30"], capture_output=True, text=True, timeout=60)
    assert result.stdout.split()[-1] == "done"
    assert not result.stderr


@pytest.mark.parametrize("cls", ["ProcessPoolProgressExecutor", "ThreadPoolProgressExecutor"])
def test_ctrl_c_at_exit_cancels_what_an_open_executor_still_runs(cls, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LEFT_OPEN)
    with subprocess.Popen(
        [sys.executable, script, cls, "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as caller:
        assert caller.stdout.readline() == "running\n"
        os.killpg(caller.pid, signal.SIGINT)
        output, errors = caller.communicate(timeout=30)
    assert output.split()[-1] == "cancelled"
    assert not errors
    assert not segments(caller.pid)
