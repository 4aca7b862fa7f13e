"""Workers that are killed, and callers: every future ends, its last progress stays readable, nothing is left behind."""

import asyncio
import concurrent.futures
import contextlib
import multiprocessing.connection
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from progress_executor import ProcessPoolProgressExecutor, ProgressGroup, slots

from . import jobs
from .conftest import (
    DEADLINE,
    OWN_SEMAPHORES,
    START_METHODS,
    left_by,
    make_executor,
    needs_shm,
    open_gate,
    segments,
    session,
    until,
)
from .test_bars import RecordedBar
from .test_futures import watch

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")

AT_ONCE = 2
"""Seconds within which all futures of a broken pool are done."""

DYING = {"n": 7, "total": 9, "status": "dying"}
"""What is reported by those that are to be killed."""


class Scene:
    """A pool of two workers: a task to be killed, one beside it, some in the call queue and some that are pending."""

    def __init__(self, executor, tmp_path, death=jobs.die, *args, pending=12):
        self.kill = tmp_path / "kill"
        self.executor = executor
        self.other = executor.submit(jobs.step_until, str(tmp_path / "never"))
        self.dying = executor.submit(death, *args, str(self.kill))
        until(lambda: self.other.state["n"] > 0 and self.dying.running(), "the start of both tasks")
        self.workers = [process.sentinel for process in executor._processes.values()]
        argument = bytes(1 << 20)  # more than the call queue's pipe holds: somebody is about to write it for ever
        self.waiting = [executor.submit(jobs.add, argument) for _ in range(pending)]
        self.futures = [self.dying, self.other, *self.waiting]
        self.told = [watch(future) for future in self.futures]
        self.done = []
        RecordedBar.made = self.bars = []
        for future in self.futures:
            future.add_tqdm_callback(RecordedBar)
            future.add_done_callback(self.done.append)

    def strike(self, seen=True):
        """Have the worker killed; `seen`: when the caller knows the task's progress. From its death on time counts:

        a large process takes seconds to run out of memory.
        """
        if seen:
            until(lambda: self.dying.state == DYING, "the report")
        self.beside = self.other.state["n"]
        open_gate(self.kill)
        assert multiprocessing.connection.wait(self.workers, DEADLINE)

    def check(self):
        """Within `AT_ONCE` from now all futures have ended as in the standard library, and all is told."""
        unfinished = concurrent.futures.wait(self.futures, timeout=AT_ONCE).not_done
        assert not unfinished
        self.check_ended()

    def check_ended(self):
        for future in self.futures:
            assert isinstance(future.exception(timeout=0), BrokenProcessPool)
            assert not future.cancelled()
        assert self.dying.state == {**DYING, "status": "failed"}
        assert self.other.state["n"] >= self.beside
        assert all(future.state == {"n": 0, "total": None, "status": "failed"} for future in self.waiting)
        self.check_told()
        with pytest.raises(BrokenProcessPool):
            self.executor.submit(jobs.add, 1)

    def check_told(self):
        """The final state was told to all, last and once."""
        for future, told, bar in zip(self.futures, self.told, self.bars, strict=True):
            assert [new for _, new in told if new["status"] == "failed"] == [future.state]
            assert told[-1][1] == future.state
            assert bar.closed == 1
            assert bar.shown[-1] == (future.state["n"], future.state["total"], "failed")
        until(lambda: len(self.done) == len(self.futures), "the done callbacks")
        assert set(self.done) == set(self.futures)


# A worker


@pytest.fixture
def process_pool():
    with ProcessPoolProgressExecutor(2) as executor:
        yield executor
    assert not segments()


class Unpicklable:
    """When `fail` is set, and not before."""

    def __init__(self):
        self.fail = threading.Event()

    def __reduce__(self):
        assert self.fail.wait(DEADLINE)
        raise TypeError("cannot be pickled")


def test_a_call_that_cannot_be_pickled_while_its_pool_breaks_costs_no_other_future(tmp_path):
    """The feeder thread takes its work item out, in the midst of the manager thread's loop over all of them."""
    kill, argument = tmp_path / "kill", Unpicklable()
    with ProcessPoolProgressExecutor(1) as executor:
        dying = executor.submit(jobs.die, "be_killed", str(kill))
        until(lambda: dying.state == DYING, "the report")
        failing = executor.submit(jobs.add, argument)
        others = [executor.submit(jobs.add, 1) for _ in range(5)]

        def fail_now(future):
            argument.fail.set()
            until(failing.done)

        dying.add_done_callback(fail_now)
        open_gate(kill)
        assert not concurrent.futures.wait([dying, failing, *others], timeout=DEADLINE).not_done
    assert isinstance(failing.exception(), TypeError)
    assert all(isinstance(future.exception(), BrokenProcessPool) for future in (dying, *others))


@needs_shm
def test_the_segment_of_a_broken_pool_goes_though_the_executor_is_kept(tmp_path):
    executor = ProcessPoolProgressExecutor(1)
    future = executor.submit(jobs.die, "be_killed", str(tmp_path / "kill"))
    open_gate(tmp_path / "kill")
    assert isinstance(future.exception(), BrokenProcessPool)
    until(lambda: not segments(), "the end of the segment")
    assert future.state == {**DYING, "status": "failed"}
    executor.shutdown()


@needs_shm
@pytest.mark.parametrize("how", jobs.DEATHS)
def test_a_worker_that_dies_fails_every_future_at_once_and_loses_no_progress(how, process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die, how)
    scene.strike()
    scene.check()


@needs_shm
@pytest.mark.slow
@pytest.mark.parametrize("how", jobs.DEATHS)
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_dies_likewise_with_the_other_start_methods(method, how, tmp_path):
    with make_executor(method) as executor:
        scene = Scene(executor, tmp_path, jobs.die, how)
        scene.strike()
        scene.check()
    assert not segments()


@needs_shm
@pytest.mark.parametrize("how", jobs.DEATHS)
def test_leaving_the_executor_tells_of_a_worker_that_died(how, tmp_path):
    with ProcessPoolProgressExecutor(2) as executor:
        scene = Scene(executor, tmp_path, jobs.die, how)
        scene.strike()
        began = time.monotonic()
    assert time.monotonic() - began < AT_ONCE
    scene.check_told()
    assert not segments()


def test_a_memory_error_of_the_task_is_the_tasks_own(process_pool):
    future = process_pool.submit(jobs.ask_for_too_much_memory)
    with pytest.raises(MemoryError):
        future.result()
    assert future.state == {"n": 7, "total": None, "status": "failed"}
    assert process_pool.submit(jobs.count, 3).result() == 3


@needs_shm
@pytest.mark.parametrize("sent", [0, 3, 4, 100, 1 << 17])
def test_a_worker_killed_while_it_sends_a_result_breaks_the_pool(sent, process_pool, tmp_path):
    """The standard library waits for the rest for ever."""
    scene = Scene(process_pool, tmp_path, jobs.die_while_the_result_is_sent, sent)
    scene.strike()
    scene.check()


def test_large_results_of_many_workers_arrive_whole():
    with ProcessPoolProgressExecutor(3, max_tasks_per_child=None) as executor:
        sizes = [1 << 21, 5, 1 << 16, (1 << 16) - 4, 4092, 4093, 16384, 16385] * 4
        futures = [executor.submit(bytes, size) for size in sizes]
        assert [len(future.result()) for future in futures] == sizes


def test_a_worker_that_dies_in_its_initializer_breaks_the_pool():
    with ProcessPoolProgressExecutor(2, initializer=os._exit, initargs=(3,)) as executor:
        with contextlib.suppress(BrokenProcessPool):  # it may be dead before all are submitted
            futures = []
            futures.extend(executor.submit(jobs.count, 3) for _ in range(9))
        assert not concurrent.futures.wait(futures, timeout=AT_ONCE).not_done
        assert all(future.state == {"n": 0, "total": None, "status": "failed"} for future in futures)


def test_a_worker_killed_while_it_has_nothing_to_do_breaks_the_pool():
    with ProcessPoolProgressExecutor(2) as executor:
        future = executor.submit(jobs.count, 3)
        assert future.result() == 3
        pid = next(iter(executor._processes))
        os.kill(pid, signal.SIGKILL)
        until(lambda: _refuses(executor))
        assert future.state == {"n": 3, "total": 3, "status": "done"}


def _refuses(executor):
    try:
        executor.submit(jobs.add, 1)
    except BrokenProcessPool:
        return True
    return False


@needs_shm
def test_cancelled_futures_stay_cancelled_when_a_worker_dies(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die, "be_killed")
    in_call_queue, pending = scene.waiting[0], scene.waiting[-1]
    until(in_call_queue.running)
    assert pending.cancel()
    assert in_call_queue.cancel()
    scene.strike()
    assert not concurrent.futures.wait(scene.futures, timeout=AT_ONCE).not_done
    assert pending.cancelled()
    assert pending.state["status"] == "cancelled"
    # Nobody ever said that this one stopped: it failed, like all that the pool had taken.
    assert isinstance(in_call_queue.exception(), BrokenProcessPool)
    assert in_call_queue.cancel_requested()


def submit(executor):
    with contextlib.suppress(BrokenProcessPool):
        executor.submit(jobs.add, 1)


def shut_down(executor):
    executor.shutdown(wait=False)


@needs_shm
@pytest.mark.parametrize("use", [submit, shut_down])
@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("forkserver", "spawn"))]
)
def test_a_done_callback_may_use_the_pool_that_a_dead_worker_has_broken(method, use, tmp_path):
    with make_executor(method) as executor:
        scene = Scene(executor, tmp_path, jobs.die, "be_killed")
        for future in (scene.dying, scene.waiting[0]):
            future.add_done_callback(lambda _: use(executor))
        scene.strike()
        scene.check()
    assert not segments()


@needs_shm
def test_a_slow_done_callback_of_a_broken_pool_holds_up_the_others_and_loses_none(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die, "be_killed")
    begun, go = threading.Event(), threading.Event()
    scene.dying.add_done_callback(lambda _: (begun.set(), go.wait(DEADLINE)))
    scene.strike()
    assert begun.wait(DEADLINE)
    assert not scene.waiting[0].done()
    go.set()
    scene.check()


@needs_shm
def test_ctrl_c_is_heard_while_a_done_callback_of_a_broken_pool_keeps_it_from_ending(process_pool, tmp_path, monkeypatch):
    scene = Scene(process_pool, tmp_path, jobs.die, "be_killed")
    begun, leaving, go, ended = (threading.Event() for _ in range(4))
    scene.dying.add_done_callback(lambda _: (begun.set(), go.wait(DEADLINE), ended.set()))
    leave = process_pool._leave
    monkeypatch.setattr(process_pool, "_leave", lambda: (leaving.set(), leave()))

    def interrupt_twice():
        begun.wait(DEADLINE)
        leaving.wait(DEADLINE)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: scene.waiting[0].cancel_requested() or ended.is_set())
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt_twice)
    interrupting.start()
    scene.strike()
    with pytest.raises(KeyboardInterrupt):
        process_pool.shutdown()
    assert not ended.is_set()
    go.set()
    interrupting.join()


# Between two stores


@needs_shm
def test_a_worker_killed_between_two_stores_leaves_the_last_state_that_was_seen(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die_between_two_stores)
    scene.strike()
    scene.check()


@needs_shm
def test_a_worker_killed_between_two_stores_leaves_what_the_caller_saw_last_if_that_was_earlier(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die_between_two_stores)
    n, total, _ = scene.bars[0].shown[-1]  # where the bar was made: there may have been no report yet
    scene.strike(seen=False)
    until(scene.dying.done)
    assert scene.dying.state == {"n": n, "total": total, "status": "failed"}


@needs_shm
def test_a_worker_killed_between_two_stores_leaves_no_progress_if_nobody_had_looked(process_pool, tmp_path):
    future = process_pool.submit(jobs.die_between_two_stores, str(tmp_path / "kill"))
    open_gate(tmp_path / "kill")
    until(future.done)
    assert future.state == {"n": 0, "total": None, "status": "failed"}


@needs_shm
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_that_was_started_late_is_missed_when_it_is_killed(method, monkeypatch, tmp_path):
    with make_executor(method, 2) as executor:
        first = executor.submit(jobs.step_until, str(tmp_path / "gate"))
        until(lambda: first.state["n"])
        spawn = executor._spawn_process

        def spawn_late():
            time.sleep(0.3)  # the manager thread has been woken, and waits again
            spawn()

        monkeypatch.setattr(executor, "_spawn_process", spawn_late)
        second = executor.submit(jobs.report_pid, str(tmp_path / "gate"))
        until(lambda: second.state["status"].isdecimal())
        os.kill(int(second.state["status"]), signal.SIGKILL)
        for future in (first, second):
            with pytest.raises(BrokenProcessPool):
                future.result(DEADLINE)


def test_nobody_waits_for_the_writers_of_a_broken_pool(process_pool, tmp_path, monkeypatch):
    # For the final state of a task that goes on, a writer that waits for its processor is waited for.
    waited = []
    monkeypatch.setattr(slots, "sleep", waited.append)
    scene = Scene(process_pool, tmp_path, jobs.die_between_two_stores)
    scene.strike()
    scene.check()
    assert not any(waited)


@needs_shm
@pytest.mark.slow
def test_many_workers_that_are_stopped_between_two_stores_keep_nobody_waiting():
    with ProcessPoolProgressExecutor(48) as executor:
        futures = [executor.submit(jobs.stay_between_two_stores) for _ in range(48)]
        until(lambda: sum(future._task.slot._words[jobs.SEQUENCE] & 1 for future in futures if future._task.slot) == 48)
        os.kill(next(iter(executor._processes)), signal.SIGKILL)
        assert not concurrent.futures.wait(futures, timeout=AT_ONCE).not_done


@needs_shm
def test_a_state_written_by_half_is_read_without_waiting(process_pool, tmp_path, gate):
    # The writer is stopped there, and not dead: the pool goes on, and so does whoever asks.
    future = process_pool.submit(jobs.stop_between_two_stores, str(tmp_path / "half"), gate)
    until(lambda: future.state == DYING)
    open_gate(tmp_path / "half")
    until(lambda: _slot_of(future)._words[jobs.SEQUENCE] & 1, "the half of a write")
    began = time.monotonic()
    for _ in range(100):
        assert future.state == DYING
    assert time.monotonic() - began < 1  # they take 20 ms
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    assert process_pool.submit(jobs.count, 3).result() == 3
    open_gate(gate)
    future.result()
    assert future.state == {"n": 8, "total": 9, "status": "done"}


def _slot_of(future):
    return future._task.slot


@needs_shm
@pytest.mark.slow
def test_a_worker_killed_at_any_moment_of_reporting_leaves_a_state_that_it_has_written():
    # The moment is what is tried here. Without luck the sequence is odd then, in the compiled form too.
    chance = random.Random(5)
    for _ in range(150):
        with ProcessPoolProgressExecutor(1) as executor:
            future = executor.submit(jobs.report_without_end)
            until(lambda future=future: future.state["n"] > 0)
            (pid,) = executor._processes
            threading.Timer(chance.uniform(0, 0.01), os.kill, (pid, signal.SIGKILL)).start()
            before = seen = future.state
            while not future.done():
                assert jobs.is_of_one_moment(seen), seen
                before, seen = seen, future.state
                if seen["status"] == "failed":
                    break
                assert seen["n"] >= before["n"]
            assert isinstance(future.exception(timeout=AT_ONCE), BrokenProcessPool)
            final = future.state
            assert final["status"] == "failed"
            assert final["n"] >= before["n"]
            assert final["total"] // 2 - final["n"] in (0, 1)
    assert not segments()


# Those who wait otherwise


@needs_shm
@pytest.mark.parametrize("wait", ["await", "check_for_progress", "task group", "group"])
def test_who_waits_in_an_event_loop_hears_of_a_worker_that_died(wait, process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die, "be_killed")

    async def main():
        scene.strike()
        async with asyncio.timeout(AT_ONCE):
            if wait == "await":
                await scene.dying
            elif wait == "check_for_progress":
                await scene.dying.check_for_progress(0.01)
            elif wait == "group":
                await ProgressGroup(scene.futures)
            else:
                async with asyncio.TaskGroup() as tg:
                    for future in scene.futures:
                        tg.create_task(future)

    if wait != "task group":
        with pytest.raises(BrokenProcessPool):
            asyncio.run(main())
        process_pool.shutdown()
        scene.check_ended()
        return
    with pytest.raises(ExceptionGroup) as error:
        asyncio.run(main())
    assert all(isinstance(each, BrokenProcessPool) for each in error.value.exceptions)
    process_pool.shutdown()
    # The first that fails has the group cancel its siblings, of which the pool may not have failed all yet.
    for future, told, bar in zip(scene.futures, scene.told, scene.bars, strict=True):
        assert future.cancelled() or isinstance(future.exception(timeout=0), BrokenProcessPool)
        assert told[-1][1] == future.state
        assert bar.closed == 1


@needs_shm
def test_a_group_whose_worker_died_has_failed(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die, "be_killed")
    group = ProgressGroup(scene.futures)
    states = watch(group)
    group.add_tqdm_callback(RecordedBar)
    scene.strike()
    with pytest.raises(BrokenProcessPool):
        group.result(timeout=AT_ONCE)
    assert group.state["status"] == "failed"
    assert group.state["failed"] == len(scene.futures)
    assert [new for _, new in states if new["status"] == "failed"] == [group.state]
    bar = scene.bars.pop()
    assert bar.closed == 1
    scene.check_ended()


# The caller


CALLER = f"""
import signal, sys, time
from progress_executor import *
for signum in (signal.SIGHUP, signal.SIGQUIT):  # which nohup and shells have what they start ignore
    signal.signal(signum, signal.SIG_DFL)
{OWN_SEMAPHORES}
def entered(file):
    with open(file, "w"):
        pass
def step(file, progress):
    entered(file)
    while True:
        progress.update()
def never_report(file, progress):
    entered(file)
    while True:
        pass
def stay_in_c(file):
    entered(file)
    time.sleep(10**6)
if __name__ == "__main__":
    method, folder = sys.argv[1:]
    if method == "fork beside":
        method = "fork"
    executor = ProcessPoolProgressExecutor(3, multiprocessing.get_context(method))
    print("begun", flush=True)
    files = [os.path.join(folder, name) for name in "abc"]
    for fn, file in zip((step, never_report, stay_in_c), files):
        executor.submit(fn, file)
    for _ in range(20):
        executor.submit(bytes, bytes(1 << 20))
    while not all(map(os.path.exists, files)):
        time.sleep(0.001)
    if sys.argv[1] == "fork beside":  # as a pool of the standard library would, whose workers do not end
        pid = os.fork()
        if not pid:
            os.setsid()
            os.closerange(0, 3)
            time.sleep(20)
            os._exit(0)
        print(pid, flush=True)
    print("all run", flush=True)
    time.sleep(10**6)
"""


@pytest.fixture
def caller(tmp_path):
    """Starts the program above as the leader of a session."""
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    (tmp_path / "entered").mkdir()
    (tmp_path / "temporary").mkdir()

    @contextlib.contextmanager
    def start(method):
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", script, method, tmp_path / "entered"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the resource tracker says what it removes
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        ) as process:
            try:
                yield process
            finally:  # if it should live on, this would wait for it for ever
                process.kill()

    return start


def kill_and_check(caller, folder):
    caller.kill()
    killed = time.monotonic()
    until(lambda: not session(caller.pid), "the end of all processes")
    until(lambda: not left_by(caller.pid), "the end of shared memory and semaphores")
    assert time.monotonic() - killed < 5
    # The forkserver's socket, which it does not remove itself, is what the standard library leaves, too.
    assert all(entry.name.startswith("pymp-") for entry in folder.iterdir())


METHODS = ["fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("forkserver", "spawn"))]


@linux
@needs_shm
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_of_a_killed_caller(method, caller, tmp_path):
    with caller(method) as process:
        assert process.stdout.readline() == "begun\n"
        assert process.stdout.readline() == "all run\n"
        assert len(session(process.pid)) >= 4
        assert segments(process.pid)
        kill_and_check(process, tmp_path / "temporary")


@linux
@needs_shm
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT"])
def test_nothing_is_left_when_the_terminal_ends_the_whole_group(name, method, caller):
    """SIGHUP comes when its window is closed."""
    with caller(method) as process:
        assert process.stdout.readline() == "begun\n"
        assert process.stdout.readline() == "all run\n"
        assert segments(process.pid)
        os.killpg(process.pid, getattr(signal, name))
        assert process.wait(DEADLINE) == -getattr(signal, name)
        until(lambda: not session(process.pid), "the end of all processes")
        assert not left_by(process.pid)


@linux
@needs_shm
def test_a_killed_worker_is_missed_though_another_pool_started_in_the_midst_of_its_start(monkeypatch, gate):
    """Between the making of its pipes and its fork: who was forked there would hold them."""
    main, ends_of = threading.current_thread(), os.pipe
    with make_executor("fork", 1) as executor, make_executor("fork", 1) as other:
        thread = threading.Thread(target=other.submit, args=(jobs.step_until, gate))

        def pipe():
            ends = ends_of()
            if thread.ident is None and threading.current_thread() is main:
                thread.start()
                thread.join(0.5)  # it has to wait
            return ends

        monkeypatch.setattr(os, "pipe", pipe)
        future = executor.submit(jobs.step_until, gate)
        try:
            thread.join()
            until(lambda: future.state["n"])
            os.kill(*executor._processes, signal.SIGKILL)
            with pytest.raises(BrokenProcessPool):
                future.result(2)
        finally:
            open_gate(gate)


@linux
@needs_shm
def test_workers_of_a_killed_caller_end_though_a_process_that_it_forked_lives_on(caller):
    with caller("fork beside") as process:
        assert process.stdout.readline() == "begun\n"
        beside = int(process.stdout.readline())
        assert process.stdout.readline() == "all run\n"
        process.kill()
        killed = time.monotonic()
        try:
            until(lambda: len(session(process.pid)) <= 1, "the end of the workers")  # the resource tracker is held, too
            assert time.monotonic() - killed < 5
            os.kill(beside, 0)
        finally:
            os.kill(beside, signal.SIGKILL)
        until(lambda: not session(process.pid) and not left_by(process.pid), "the end of all")


KILLED_WITH_A_NEW_SEGMENT = """
import os, signal, _posixshmem
from progress_executor import *
def create(*args, shm_open=_posixshmem.shm_open, **kwargs):
    shm_open(*args, **kwargs)
    print("created", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
_posixshmem.shm_open = create
ProcessPoolProgressExecutor(1).submit(abs, -1)
"""


@needs_shm
def test_nothing_is_left_of_a_caller_killed_while_it_creates_its_segment():
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WITH_A_NEW_SEGMENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout.readline() == "created\n"
        assert process.wait() == -signal.SIGKILL
        until(lambda: not segments(process.pid), "the end of the segment")


def test_a_segment_that_cannot_be_created_is_no_matter_for_the_resource_tracker():
    code = """
import multiprocessing.shared_memory, os, _posixshmem
from progress_executor import *
def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")
if {early}:
    _posixshmem.shm_open = fail
else:
    os.ftruncate = fail
with ProcessPoolProgressExecutor(1) as executor:
    try:
        executor.submit(abs, -1)
    except OSError as error:
        print(error)
"""
    for early in (True, False):
        result = subprocess.run([sys.executable, "-c", code.format(early=early)], capture_output=True, text=True, timeout=60)
        assert "no shared memory" in result.stdout
        assert not result.stderr


@linux
@needs_shm
@pytest.mark.slow
@pytest.mark.parametrize("method", START_METHODS)
def test_nothing_is_left_of_a_caller_killed_while_it_starts_its_workers(method, caller, tmp_path):
    chance = random.Random(7)
    for _ in range(10 if method == "fork" else 4):
        with caller(method) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(chance.uniform(0, 0.1 if method == "fork" else 0.5))  # the moment is what is tried here
            kill_and_check(process, tmp_path / "temporary")
