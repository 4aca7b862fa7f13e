"""Process pools: what a worker is given and gives back, who holds up whom, and nothing left behind."""

import concurrent.futures
import functools
import gc
import io
import itertools
import logging
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
from collections import Counter

import pytest

from progress_executor import ProcessPoolProgressExecutor, WorkerDied

from . import jobs
from .conftest import DEADLINE, START_METHODS, alive, make_executor, open_gate, session, until
from .test_futures import watch


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


def test_ten_thousand_tasks_leave_nothing_behind():
    threads = threading.active_count()
    with ProcessPoolProgressExecutor(2) as executor:
        assert sum(executor.map(jobs.count, [3] * 10_000)) == 30_000
    assert not multiprocessing.active_children()
    assert threading.active_count() == threads


@pytest.mark.parametrize("method", START_METHODS)
def test_pools_that_have_ended_leave_nothing_behind(method):
    def work():
        with make_executor(method) as executor:
            assert sum(executor.map(jobs.count, [3] * 100)) == 300
            assert isinstance(executor.submit(jobs.be_killed).exception(), WorkerDied)
        gc.collect()
        return files(), threading.active_count()

    work()  # the fork server stays, and what tells of it
    left = work()
    assert work() == left
    assert not multiprocessing.active_children()


def files():
    return len(os.listdir("/dev/fd"))


def test_nothing_is_started_before_the_first_task():
    before = files(), threading.active_count()
    with ProcessPoolProgressExecutor(2) as executor:
        assert executor._processes == {}
        assert not multiprocessing.active_children()
        assert (files(), threading.active_count()) == before


@pytest.mark.parametrize("method", START_METHODS)
def test_libraries_find_the_workers_in_processes(method, gate):
    with make_executor(method, 2) as executor:
        assert isinstance(executor, concurrent.futures.ProcessPoolExecutor)
        assert executor._max_workers == 2
        futures = [executor.submit(jobs.report_pid, gate) for _ in range(2)]
        until(lambda: all(future.state["status"].isdecimal() for future in futures))
        workers = executor._processes
        assert set(workers) == {int(future.state["status"]) for future in futures}
        assert all(worker.pid == pid and worker.is_alive() for pid, worker in workers.items())
        workers.clear()  # theirs
        assert len(executor._processes) == 2
        open_gate(gate)
    assert executor._processes == {}


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
        for _ in range(4):  # in each of its slots, and once more
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


@pytest.mark.parametrize(
    "call",
    [(jobs.count, 3), (jobs.fail,), (jobs.be_killed,), (jobs.add, lambda: None)],
    ids=["returns", "fails", "dies", "cannot be pickled"],
)
def test_a_done_callback_that_waits_for_its_executor_is_told_so(call, gate):
    raised = []

    def leave(future):
        with pytest.raises(RuntimeError, match="cannot wait for that executor's end"):
            executor.shutdown()
        raised.append(future)

    executor = ProcessPoolProgressExecutor(1)
    blocker = executor.submit(jobs.wait_for, gate)
    future = executor.submit(*call)
    future.add_done_callback(leave)
    open_gate(gate)
    concurrent.futures.wait([blocker, future])
    executor.shutdown()
    assert raised == [future]
    assert not multiprocessing.active_children()


def test_an_executor_that_goes_with_a_call_that_cannot_be_pickled_ends():
    for _ in range(20):
        executor = ProcessPoolProgressExecutor(1)
        argument = Unpicklable()
        futures = [executor.submit(jobs.add, argument) for _ in range(3)]
        executor.shutdown(wait=False)
        threads = tuple(executor._crew.threads)
        del executor
        argument.fail.set()
        for future in futures:
            assert isinstance(future.exception(DEADLINE), TypeError)
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()


class Unpicklable:
    """When `fail` is set, and not before."""

    def __init__(self):
        self.fail = threading.Event()

    def __reduce__(self):
        assert self.fail.wait(DEADLINE)
        raise TypeError("cannot be pickled")


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


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_that_end_after_their_number_of_tasks_are_always_replaced(method):
    with make_executor(method, 2, max_tasks_per_child=3) as executor:
        futures = [executor.submit(os.getpid) for _ in range(20)]
        for future in futures[::4]:
            future.cancel()
        counts = Counter(future.result(DEADLINE) for future in futures if not future.cancelled())
    assert counts.total() >= 15
    assert max(counts.values()) <= 3


@pytest.mark.parametrize("end", ["shutdown", "drop"])
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_they_are_replaced_also_when_the_executor_was_shut_down_or_dropped(method, end):
    executor = make_executor(method, 1, max_tasks_per_child=1)
    futures = [executor.submit(jobs.add, n) for n in range(5)]
    futures.pop(2).cancel()
    dropped = weakref.ref(executor)
    if end == "shutdown":
        executor.shutdown(wait=False)
    del executor
    assert [future.result(timeout=DEADLINE) for future in futures] == [1, 2, 4, 5]
    until(lambda: dropped() is None, "the end of the executor")


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


def busy(executor, gate):
    """What the one worker runs until there is the gate, and three that are pending, the first of them given in advance."""
    executor.submit(jobs.wait_for, gate + ".first")
    running = executor.submit(jobs.wait_for, gate)
    pending = [executor.submit(touch, f"{gate}.{n}") for n in range(3)]
    open_gate(gate + ".first")
    until(lambda: running.state["status"] == "running" and pending[0]._task.link is not None)
    return running, pending


@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers", "cancel_futures"])
@pytest.mark.parametrize("method", START_METHODS)
def test_what_is_pending_is_cancelled_when_a_pool_is_stopped(method, end, gate):
    with make_executor(method, 1) as executor:
        running, pending = busy(executor, gate)
        workers = executor._processes
        if end == "cancel_futures":
            executor.shutdown(wait=False, cancel_futures=True)
        else:
            getattr(executor, end)()
        assert [future.cancelled() for future in pending] == [True] * 3
        with pytest.raises(RuntimeError):
            executor.submit(jobs.add, 1)
        if end == "cancel_futures":
            open_gate(gate)
            assert running.result(DEADLINE) == "waited"
        else:
            died = running.exception(DEADLINE)
            assert isinstance(died, WorkerDied)
            assert died.exitcode == -(signal.SIGKILL if end == "kill_workers" else signal.SIGTERM)
    assert not any(map(alive, workers))
    assert not any(os.path.exists(f"{gate}.{n}") for n in range(3))


@pytest.mark.parametrize("kind", ["thread", "process", "sync"])
def test_map_takes_no_more_than_its_buffer(kind):
    taken = []

    def numbers():
        for number in range(100):
            taken.append(number)
            yield number

    with make_executor(kind) as executor:
        values = executor.map(jobs.add, numbers(), buffersize=3)
        assert len(taken) == 3
        assert [next(values), next(values)] == [1, 2]
        assert len(taken) == 5
        assert list(values) == list(range(3, 101))
        for wrong, error in ((0, ValueError), ("3", TypeError)):
            with pytest.raises(error, match="buffersize"):
                executor.map(jobs.add, [1], buffersize=wrong)


class DemandingError(Exception):
    """It is pickled, but not unpickled: that calls it with `args` alone."""

    def __init__(self, text, number):
        super().__init__(text)
        self.number = number


class ClosedError(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.reason = lambda: text


def raise_it(kind):
    raise {"demanding": DemandingError("on purpose", 7), "closed": ClosedError("on purpose")}[kind]


@pytest.mark.parametrize(("kind", "error"), [("demanding", pickle.UnpicklingError), ("closed", pickle.PicklingError)])
def test_an_error_that_does_not_arrive_keeps_text_and_traceback(kind, error):
    with ProcessPoolProgressExecutor(1) as executor:
        future, following = executor.submit(raise_it, kind), executor.submit(jobs.add, 1)
        with pytest.raises(error, match=f"{kind.title()}Error: on purpose"):
            future.result(DEADLINE)
        assert "in raise_it" in str(future.exception().__cause__)
        assert following.result(DEADLINE) == 2


class Slow:
    """An argument whose pickling takes as long as the gate is closed."""

    def __init__(self, gate):
        self.gate = gate

    def __reduce__(self):
        jobs.wait_for(self.gate)
        return int, ()


@pytest.mark.parametrize("method", START_METHODS)
def test_a_slow_pickle_holds_up_nobody_else(method, gate):
    with make_executor(method) as executor:
        slow = executor.submit(jobs.add, Slow(gate))
        others = [executor.submit(jobs.add, number) for number in range(50)]
        assert [future.result(DEADLINE) for future in others] == list(range(1, 51))
        assert not slow.done()
        open_gate(gate)
        assert slow.result(DEADLINE) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda argument: (jobs.add, argument),
        lambda argument: (len, [(argument,)]),
        lambda argument: (functools.partial(jobs.add, b=argument), 1),
    ],
    ids=["argument", "nested", "partial"],
)
def test_a_slow_pickle_does_not_hold_up_the_task_before_it(call, gate):
    first, pickling = gate + ".first", gate + ".pickling"
    with make_executor("fork", 1) as executor:
        executor.submit(jobs.wait_for, first)
        running, slow = executor.submit(jobs.wait_for, gate), executor.submit(*call(Slow(pickling)))
        open_gate(first)
        until(lambda: running.state["status"] == "running")  # the next one would be pickled now
        open_gate(gate)
        assert running.result(DEADLINE) == "waited"
        assert not slow.done()
        open_gate(pickling)
        slow.result(DEADLINE)


def twice(data):
    return data + data


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("size", [20 << 20, pytest.param(100 << 20, marks=pytest.mark.slow)])
def test_large_arguments_and_results_pass_each_other(size, workers):
    data = bytes(size)
    with ProcessPoolProgressExecutor(workers) as executor:
        futures = [executor.submit(twice, data) for _ in range(4)]
        while futures:
            assert len(futures.pop(0).result(DEADLINE)) == 2 * size


def test_a_worker_that_was_stopped_holds_up_nobody_else(gate):
    with ProcessPoolProgressExecutor(2) as executor:
        stopped = executor.submit(jobs.report_pid, gate)
        until(lambda: stopped.state["status"].isdecimal())
        os.kill(int(stopped.state["status"]), signal.SIGSTOP)
        assert [executor.submit(jobs.add, number).result(DEADLINE) for number in range(20)] == list(range(1, 21))
        os.kill(int(stopped.state["status"]), signal.SIGCONT)
        open_gate(gate)
        stopped.result(DEADLINE)


@pytest.mark.parametrize("method", START_METHODS)
def test_a_worker_stopped_while_it_sends_a_result_holds_up_nobody(method):
    with make_executor(method, 2) as executor:
        stopped = executor.submit(stop_while_the_result_is_sent, 1 << 20)
        until(lambda: stopped.state["status"].isdecimal())
        pid = int(stopped.state["status"])
        until(lambda: state_of(pid) == "T", "the stop")
        assert list(executor.map(jobs.add, range(30), timeout=DEADLINE)) == list(range(1, 31))
        assert not stopped.done()
        os.kill(pid, signal.SIGCONT)
        assert stopped.result(DEADLINE) == bytes(1 << 20)


def stop_while_the_result_is_sent(size, progress):
    def write_half(file, data, write=os.write):
        os.write = write
        sent = write(file, data[: size // 2])
        os.kill(os.getpid(), signal.SIGSTOP)
        return sent

    progress.status = str(os.getpid())
    os.write = write_half
    return bytes(size)


def state_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_a_signal_handler_may_submit_in_the_midst_of_submit():
    numbers, futures = itertools.count(), []
    with ProcessPoolProgressExecutor(2) as executor:
        executor.submit(jobs.add, 1).result()
        before = signal.signal(signal.SIGALRM, lambda *_: futures.append(executor.submit(jobs.add, next(numbers))))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
        try:
            own = [executor.submit(jobs.add, number) for number in range(5000)]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert [future.result(DEADLINE) for future in own] == list(range(1, 5001))
        assert len(futures) > 1
        assert sorted(future.result(DEADLINE) for future in futures) == list(range(1, len(futures) + 1))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("method", START_METHODS)
def test_a_signal_handler_may_submit_while_a_worker_is_started(method, workers, monkeypatch):
    process, signals, futures = multiprocessing.process.BaseProcess, [signal.SIGALRM], []

    def start(self, start=process.start):
        if signals:
            signal.raise_signal(signals.pop())
        start(self)

    monkeypatch.setattr(process, "start", start)
    with make_executor(method, workers) as executor:
        before = signal.signal(signal.SIGALRM, lambda *_: futures.append(executor.submit(jobs.add, 1)))
        try:
            future = executor.submit(jobs.add, 2)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert (future.result(DEADLINE), futures[0].result(DEADLINE)) == (3, 2)
        assert len(executor._processes) <= workers


def test_a_hundred_thousand_pending_tasks_are_cancelled_at_once(gate):
    with ProcessPoolProgressExecutor(1) as executor:
        blocker = executor.submit(jobs.step_until, gate)
        until(lambda: blocker.state["n"])
        futures = [executor.submit(jobs.add, number) for number in range(100_000)]
        assert all(future.cancel() for future in futures)
        assert all(future.cancelled() for future in futures)
        open_gate(gate)


@pytest.mark.parametrize("method", START_METHODS)
def test_a_task_may_have_a_process_pool_of_its_own(method):
    with make_executor(method) as executor:
        futures = [executor.submit(count_in_a_pool, method, n) for n in (3, 4)]
        assert [future.result(DEADLINE) for future in futures] == [[3, 3, 3], [4, 4, 4]]


def count_in_a_pool(method, n):
    with make_executor(method) as executor:
        return list(executor.map(jobs.count, [n] * 3))


@pytest.mark.parametrize("method", START_METHODS)
def test_where_no_worker_can_be_started_submit_says_why(method):
    resource = pytest.importorskip("resource")
    with make_executor(method, 1) as executor:
        executor.submit(jobs.add, 1).result(DEADLINE)  # the fork server runs
    gc.collect()
    before, (soft, hard) = files(), resource.getrlimit(resource.RLIMIT_NOFILE)
    with make_executor(method, 1) as executor:
        two_more = sorted(set(range(before + 3)) - {int(file) for file in os.listdir("/dev/fd")})[2]
        resource.setrlimit(resource.RLIMIT_NOFILE, (two_more, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                executor.submit(jobs.add, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert executor.submit(jobs.add, 1).result(DEADLINE) == 2
    gc.collect()
    assert files() == before


def log_and_import():
    logging.getLogger("progress_executor.tests").warning("here")
    import tqdm

    with tqdm.tqdm.get_lock():
        return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_successor_waits_for_no_lock_of_its_caller():
    """A fork beside a thread that holds a lock copies it, and nobody releases the copy."""
    import tqdm

    over = threading.Event()

    def hold_locks():
        while not over.is_set():
            with tqdm.tqdm.get_lock(), handler.lock:
                time.sleep(0.001)

    handler = logging.StreamHandler(io.StringIO())
    logger = logging.getLogger("progress_executor.tests")
    logger.addHandler(handler)
    logger.propagate = False
    thread = threading.Thread(target=hold_locks)
    try:
        with make_executor("fork", 1) as executor:
            assert executor.submit(log_and_import).result(DEADLINE)
            thread.start()
            for _ in range(10):
                with pytest.raises(WorkerDied):
                    executor.submit(jobs.kill_oneself).result(DEADLINE)
                assert executor.submit(log_and_import).result(DEADLINE)
    finally:
        over.set()
        thread.join()
        logger.removeHandler(handler)
