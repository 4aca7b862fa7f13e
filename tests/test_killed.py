"""Workers that are killed, and callers: the task that it ran fails, nobody else notices, nothing is left behind."""

import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from progress_executor import ProgressGroup, WorkerDied, _slots
from progress_executor._slots import Slot

from . import jobs
from .conftest import DEADLINE, START_METHODS, alive, make_executor, open_gate, session, until
from .test_bars import RecordedBar
from .test_futures import watch

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

METHODS = ["fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("forkserver", "spawn"))]

AT_ONCE = 2
"""Seconds within which a task fails whose worker has died, and within which no process of a killed caller lives."""

DYING = {"n": 7, "total": 9, "status": "dying"}
"""What is reported by those that are to be killed."""

KILLED = {-signal.SIGKILL}
EXITCODES = {
    "be_killed": KILLED,
    "exit_at_once": {0},
    "fault": {-signal.SIGSEGV},
    "run_out_of_memory": {1, -signal.SIGABRT, -signal.SIGSEGV},  # it depends on who finds none
}
"""Those of a worker that ends by one of jobs.DEATHS."""


class Scene:
    """A pool of two workers: a task to be killed, one beside it, and some that are pending, plain and large ones."""

    def __init__(self, executor, tmp_path, death=jobs.die, *args):
        self.executor = executor
        self.kill, self.gate = tmp_path / "kill", str(tmp_path / "gate")
        self.dying = executor.submit(death, *args, str(self.kill))
        until(lambda: self.dying.state["status"] != "pending", "the start of the one")
        self.other = executor.submit(jobs.step_until, self.gate)
        until(lambda: self.other.state["n"] > 0, "the start of the other")
        self.workers = executor._processes
        self.waiting = [executor.submit(len, bytes(i % 2 << 20)) for i in range(12)]
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
        until(lambda: not all(map(alive, self.workers)), "the death")

    def check(self, exitcodes=KILLED, state=DYING):
        """The one task has failed, at once, and whatever there is to know of it is told; nobody else has noticed."""
        self.check_death(exitcodes, state)
        self.check_others()

    def check_death(self, exitcodes=KILLED, state=DYING):
        died = self.dying.exception(AT_ONCE)
        check_error(died, exitcodes, state)
        assert self.dying.state == {**state, "status": "failed"}
        assert died.pid in self.workers
        assert died.pid not in self.executor._processes

    def check_others(self):
        assert [future.result(DEADLINE) for future in self.waiting] == [i % 2 << 20 for i in range(12)]
        until(lambda: self.other.state["n"] > self.beside, "a step of the other")
        open_gate(self.gate)
        assert self.other.result(DEADLINE) == self.other.state["n"]
        assert self.executor.submit(jobs.add, 1).result(DEADLINE) == 2
        assert len(self.executor._processes) == 2
        self.check_told()

    def check_told(self):
        """The final state was told to all, last and once."""
        for future, told, bar in zip(self.futures, self.told, self.bars, strict=True):
            state = future.state
            assert [new for _, new in told if new["status"] in ("done", "failed", "cancelled")] == [state]
            assert told[-1][1] == state
            assert bar.closed == 1
            assert bar.shown[-1] == tuple(state.values())
        until(lambda: len(self.done) == len(self.futures), "the done callbacks")
        assert set(self.done) == set(self.futures)


def check_error(error, exitcodes, state):
    """It says how the worker has died, and where its task was."""
    assert type(error) is WorkerDied
    assert isinstance(error, BrokenProcessPool)
    assert error.exitcode in exitcodes
    assert error.state == state
    text = str(error)
    assert text.startswith(f"worker process {error.pid} {end(error.exitcode)}")
    assert text.endswith("while it ran this task, at n={n}, total={total}, status={status!r}".format(**state))
    assert ("out of memory" in text) == (error.exitcode == -signal.SIGKILL)


def end(exitcode):
    return f"ended with exit code {exitcode}" if exitcode >= 0 else f"was killed by {signal.Signals(-exitcode).name}"


# A worker that runs a task


@pytest.fixture(params=METHODS)
def process_pool(request):
    with make_executor(request.param) as executor:
        yield executor
        executor._cancel_all()  # what a test that failed has left standing, for which the end would wait


@pytest.mark.parametrize("how", jobs.DEATHS)
def test_a_worker_that_dies_fails_only_the_task_that_it_ran(how, process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die, how)
    scene.strike()
    scene.check(EXITCODES[how])


def test_leaving_the_executor_tells_of_a_worker_that_died(tmp_path):
    with make_executor("fork") as executor:
        scene = Scene(executor, tmp_path, jobs.die, "be_killed")
        scene.strike()
        open_gate(scene.gate)
    scene.check_told()
    check_error(scene.dying.exception(0), KILLED, DYING)
    assert all(future.result(0) is not None for future in (scene.other, *scene.waiting))


def test_a_memory_error_of_the_task_is_the_tasks_own(process_pool):
    future = process_pool.submit(jobs.ask_for_too_much_memory)
    with pytest.raises(MemoryError):
        future.result()
    assert future.state == {"n": 7, "total": None, "status": "failed"}
    assert process_pool.submit(jobs.count, 3).result() == 3


@pytest.mark.parametrize("sent", [0, 3, 4, 100, 1 << 17])
def test_a_worker_killed_while_it_sends_a_result_fails_that_task(sent, process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die_while_the_result_is_sent, sent)
    scene.strike()
    scene.check()


class KillsWhen:
    """Kills the process in which it is pickled, or unpickled."""

    def __init__(self, step):
        self.step = step

    def __reduce__(self):
        if self.step == "pickled":
            jobs.be_killed()
        return jobs.be_killed, ()


@pytest.mark.parametrize("call", [(len, [KillsWhen("unpickled")]), (KillsWhen, "pickled")], ids=["the call", "the result"])
def test_a_pickle_that_kills_the_worker_fails_that_task_alone(call, process_pool):
    future = process_pool.submit(*call)
    others = [process_pool.submit(jobs.count, 3) for _ in range(6)]
    check_error(future.exception(DEADLINE), KILLED, {"n": 0, "total": None, "status": "running"})
    assert [other.result(DEADLINE) for other in others] == [3] * 6


@linux
def test_a_huge_call_moves_when_the_worker_that_reads_it_dies(process_pool, gate):
    other = process_pool.submit(jobs.report_pid, gate)
    until(lambda: other.state["status"].isdecimal())
    until(lambda: len(process_pool._processes) == 2 or not process_pool.submit(jobs.add, 1).result(), "a second worker")
    (pid,) = (pid for pid in process_pool._processes if pid != int(other.state["status"]))
    before = read_by(pid)
    future = process_pool.submit(len, bytes(200 << 20))
    until(lambda: read_by(pid) > before + (1 << 20), "the reading of some of it")
    os.kill(pid, signal.SIGKILL)
    assert future.result(DEADLINE) == 200 << 20
    open_gate(gate)
    assert other.result(DEADLINE) == other.state["n"]


def read_by(pid):
    """How many bytes the process has read."""
    with open(f"/proc/{pid}/io") as file:
        return int(file.readline().split()[1])


@pytest.mark.parametrize("method", METHODS)
def test_workers_that_die_at_the_same_time_each_tell_how(method):
    with make_executor(method, 4) as executor:
        for _ in range(20):
            futures = [executor.submit(time.sleep, 10**6) for _ in range(4)]
            until(lambda futures=futures: all(future.state["status"] == "running" for future in futures))
            for pid in executor._processes:
                os.kill(pid, signal.SIGKILL)
            for future in futures:
                check_error(future.exception(DEADLINE), KILLED, {"n": 0, "total": None, "status": "running"})


def test_large_results_of_many_workers_arrive_whole():
    sizes = [1 << 21, 5, 1 << 16, (1 << 16) - 8, 4088, 4089, 16384, 16385] * 4
    with make_executor("fork", 3) as executor:
        futures = [executor.submit(bytes, size) for size in sizes]
        assert [len(future.result()) for future in futures] == sizes


def test_cancelled_futures_stay_cancelled_when_a_worker_dies(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die, "be_killed")
    cancelled = scene.waiting[:2]
    assert [future.cancel() and future.cancelled() for future in cancelled] == [True, True]
    assert scene.dying.cancel()
    scene.strike()
    scene.check_death()  # nobody ever said that it had stopped
    assert scene.dying.cancel_requested()
    assert [future.result(DEADLINE) for future in scene.waiting[2:]] == [0, 1 << 20] * 5
    assert all(future.cancelled() and future.state["status"] == "cancelled" for future in cancelled)
    open_gate(scene.gate)
    assert scene.other.result(DEADLINE) == scene.other.state["n"]
    scene.check_told()


def submit(executor):
    return executor.submit(jobs.add, 1)


def shut_down(executor):
    executor.shutdown(wait=False)


@pytest.mark.parametrize("use", [submit, shut_down])
def test_a_done_callback_may_use_the_pool_whose_worker_died(use, process_pool, tmp_path):
    scene, used = Scene(process_pool, tmp_path, jobs.die, "be_killed"), []
    scene.dying.add_done_callback(lambda _: used.append(use(process_pool)))
    scene.strike()
    scene.check_death()
    assert [future.result(DEADLINE) for future in scene.waiting] == [0, 1 << 20] * 6
    open_gate(scene.gate)
    assert scene.other.result(DEADLINE) == scene.other.state["n"]
    until(lambda: used)
    assert used == [None] or used[0].result(DEADLINE) == 2
    scene.check_told()


def test_a_slow_done_callback_of_a_dead_task_holds_up_nobody(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die, "be_killed")
    begun, go = threading.Event(), threading.Event()
    scene.dying.add_done_callback(lambda _: (begun.set(), go.wait(DEADLINE)))
    scene.strike()
    assert begun.wait(DEADLINE)
    open_gate(scene.gate)  # the other worker is free to do all the rest
    assert [future.result(DEADLINE) for future in scene.waiting] == [0, 1 << 20] * 6
    assert not go.is_set()
    go.set()
    scene.check_death()
    scene.check_told()


def test_ctrl_c_is_heard_though_a_done_callback_of_a_dead_task_waits(tmp_path, monkeypatch):
    with make_executor("fork") as executor:
        scene = Scene(executor, tmp_path, jobs.die, "be_killed")
        begun, leaving, go, ended = (threading.Event() for _ in range(4))
        scene.dying.add_done_callback(lambda _: (begun.set(), go.wait(DEADLINE), ended.set()))
        leave = executor._leave
        monkeypatch.setattr(executor, "_leave", lambda: (leaving.set(), leave()))

        def interrupt_twice():
            begun.wait(DEADLINE)
            leaving.wait(DEADLINE)
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda: scene.other.cancelled() or ended.is_set())
            os.kill(os.getpid(), signal.SIGINT)

        interrupting = threading.Thread(target=interrupt_twice)
        interrupting.start()
        scene.strike()
        with pytest.raises(KeyboardInterrupt):
            executor.shutdown()
        assert not ended.is_set()
        go.set()
        interrupting.join()


def test_the_death_of_a_nested_worker_is_told_in_full(process_pool, tmp_path):
    open_gate(tmp_path / "kill")
    future = process_pool.submit(die_in_a_nested_pool, str(tmp_path / "kill"))
    check_error(future.exception(DEADLINE), KILLED, DYING)
    assert future.state == {"n": 0, "total": None, "status": "failed"}


def die_in_a_nested_pool(kill):
    with make_executor("process", 1) as executor:
        executor.submit(jobs.die, "be_killed", kill).result(DEADLINE)


@pytest.mark.parametrize("method", METHODS)
def test_a_child_that_a_task_has_left_hides_no_death(method, tmp_path, gate):
    with make_executor(method, 1) as executor:
        executor.submit(jobs.leave_a_child_writing, str(tmp_path / "written"), gate).result(DEADLINE)
        dying = executor.submit(jobs.die, "be_killed", str(tmp_path / "kill"))
        until(lambda: dying.state == DYING)
        open_gate(tmp_path / "kill")
        check_error(dying.exception(AT_ONCE), KILLED, DYING)
        assert executor.submit(jobs.count, 3).result(DEADLINE) == 3


@pytest.mark.parametrize("then", [jobs.wait_for, jobs.exit_at_once, len])
def test_a_task_that_closes_all_files_hides_no_death(then, process_pool, gate):
    future = process_pool.submit(close_all_files, then, *([gate] if then is jobs.wait_for else []))
    until(lambda: future.running() or future.done())  # a spawned worker takes seconds to start on a busy machine
    assert isinstance(future.exception(2 * AT_ONCE), WorkerDied)
    assert process_pool.submit(jobs.count, 3).result(DEADLINE) == 3


def close_all_files(then, *args):
    os.closerange(3, 1 << 12)
    return then(*args)


# A worker that has nothing to do, or not yet


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_the_death_of_idle_workers_costs_nobody_anything(size, process_pool):
    done = [process_pool.submit(jobs.count, 3) for _ in range(4)]
    assert [future.result(DEADLINE) for future in done] == [3] * 4
    workers = set(process_pool._processes)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, workers)), "the death")
    futures = [process_pool.submit(len, bytes(size)) for _ in range(6)]
    assert [future.result(DEADLINE) for future in futures] == [size] * 6
    assert all(future.state == {"n": 3, "total": 3, "status": "done"} for future in done)
    assert not workers & set(process_pool._processes)


@pytest.mark.parametrize("method", METHODS)
def test_a_task_given_in_advance_moves_when_its_worker_dies(method, tmp_path, gate):
    with make_executor(method, 1) as executor:
        executor.submit(jobs.wait_for, gate)  # until all are pending
        dying = executor.submit(jobs.die, "be_killed", str(tmp_path / "kill"))
        futures = [executor.submit(write, str(tmp_path / "written"), text) for text in "abcde"]
        open_gate(gate)
        until(lambda: dying.state == DYING)
        until(lambda: futures[0]._task.link is not None, "the giving")
        assert not futures[0].running()
        open_gate(tmp_path / "kill")
        assert [future.result(DEADLINE) for future in futures] == [1] * 5
        check_error(dying.exception(0), KILLED, DYING)
    assert (tmp_path / "written").read_text() == "abcde"


def write(path, text):
    with open(path, "a") as file:
        return file.write(text)


@pytest.mark.parametrize("method", METHODS)
def test_a_task_that_its_dead_worker_had_not_begun_runs_in_another(method, tmp_path):
    with make_executor(method, 1) as executor:
        assert executor.submit(jobs.count, 3).result(DEADLINE) == 3
        (pid,) = executor._processes
        os.kill(pid, signal.SIGSTOP)
        future = executor.submit(write, str(tmp_path / "written"), "a")
        until(future.running)
        os.kill(pid, signal.SIGKILL)
        assert future.result(DEADLINE) == 1
    assert (tmp_path / "written").read_text() == "a"


def birth(folder):
    """How many workers have called this before."""
    number = 0
    while True:
        try:
            os.close(os.open(os.path.join(folder, str(number)), os.O_CREAT | os.O_EXCL))
            return number
        except FileExistsError:
            number += 1


def die_before_the_third_begins(folder):
    """An initializer: the first three workers die when they are to begin a task."""
    if birth(folder) < 3:
        Slot.start = lambda *_: jobs.be_killed()


@pytest.mark.parametrize("method", METHODS)
def test_a_task_fails_that_three_workers_did_not_live_to_begin(method, tmp_path):
    with make_executor(method, 1, initializer=die_before_the_third_begins, initargs=(tmp_path,)) as executor:
        future = executor.submit(jobs.count, 3)
        check_error(future.exception(DEADLINE), KILLED, {"n": 0, "total": None, "status": "pending"})
        assert executor.submit(jobs.count, 3).result(DEADLINE) == 3


def die_when_born(folder, how, lives):
    """An initializer: of so many workers the last one lives."""
    if (birth(folder) + 1) % lives:
        jobs.DEATHS[how]()


@pytest.mark.parametrize("how", ["be_killed", "exit_at_once"])
@pytest.mark.parametrize("method", METHODS)
def test_two_deaths_before_a_worker_is_ready_cost_nobody_anything(method, how, tmp_path):
    with make_executor(method, 1, initializer=die_when_born, initargs=(tmp_path, how, 3)) as executor:
        for _ in range(2):
            assert executor.submit(jobs.count, 3).result(DEADLINE) == 3
            (worker,) = executor._processes
            os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("how", ["be_killed", "exit_at_once"])
@pytest.mark.parametrize("method", METHODS)
def test_three_deaths_in_a_row_before_ready_break_the_pool(method, how, tmp_path):
    with make_executor(method, initializer=die_when_born, initargs=(tmp_path, how, 10**6)) as executor:
        check_broken(executor, rf"3 worker processes in a row died before .*: worker process \d+ {end(*EXITCODES[how])}")


def check_broken(executor, words):
    futures = []
    with contextlib.suppress(BrokenProcessPool):  # it may be broken before all are submitted
        futures.extend(executor.submit(jobs.count, 3) for _ in range(9))
    for future in futures:
        with pytest.raises(BrokenProcessPool, match=words) as caught:
            future.result(DEADLINE)
        assert caught.type is BrokenProcessPool
        assert future.state == {"n": 0, "total": None, "status": "failed"}
    with pytest.raises(BrokenProcessPool, match=words):
        executor.submit(jobs.count, 3)


@pytest.mark.parametrize("method", METHODS)
def test_an_initializer_that_raises_breaks_the_pool(method):
    with make_executor(method, initializer=jobs.fail) as executor:
        check_broken(executor, "the initializer of a worker process failed")


def live_as_the_first(folder):
    if birth(folder):
        jobs.be_killed()


@pytest.mark.parametrize("method", METHODS)
def test_a_task_that_runs_in_a_pool_that_breaks_goes_on(method, tmp_path, gate):
    (tmp_path / "births").mkdir()
    with make_executor(method, initializer=live_as_the_first, initargs=(tmp_path / "births",)) as executor:
        future = executor.submit(jobs.step_until, gate)
        until(lambda: future.state["n"])
        check_broken(executor, "3 worker processes in a row died")
        assert future.running()
        open_gate(gate)
        assert future.result(DEADLINE) == future.state["n"]


# Between two stores


def test_a_worker_killed_between_two_stores_leaves_the_last_state_that_was_seen(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die_between_two_stores)
    scene.strike()
    scene.check()


def test_a_worker_killed_between_two_stores_leaves_what_the_caller_saw_last_if_that_was_earlier(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die_between_two_stores)
    # Where the bar was made: there may have been no report yet.
    state = dict(zip(DYING, scene.bars[0].shown[-1], strict=True))
    scene.strike(seen=False)
    scene.check(state=state)


def test_a_worker_killed_between_two_stores_leaves_no_progress_if_nobody_had_looked(process_pool, tmp_path):
    future = process_pool.submit(jobs.die_between_two_stores, str(tmp_path / "kill"))
    open_gate(tmp_path / "kill")
    until(future.done)
    assert future.state == {"n": 0, "total": None, "status": "failed"}


def test_nobody_waits_for_the_writer_that_died(process_pool, tmp_path, monkeypatch):
    # For the final state of a task that goes on, a writer that waits for its processor is waited for.
    waited = []
    monkeypatch.setattr(_slots, "sleep", waited.append)
    scene = Scene(process_pool, tmp_path, jobs.die_between_two_stores)
    scene.strike()
    scene.check()
    assert not any(waited)


@pytest.mark.slow
def test_many_workers_that_are_stopped_between_two_stores_keep_nobody_waiting():
    with make_executor("fork", 48) as executor:
        futures = [executor.submit(jobs.stay_between_two_stores) for _ in range(48)]
        until(lambda: sum(future._task.slot._words[jobs.SEQUENCE] & 1 for future in futures if future._task.slot) == 48)
        executor.kill_workers()
        assert not concurrent.futures.wait(futures, timeout=AT_ONCE).not_done
        assert all(isinstance(future.exception(), WorkerDied) for future in futures)


def test_a_state_written_by_half_is_read_without_waiting(process_pool, tmp_path, gate, monkeypatch):
    # The writer is stopped there, and not dead: the pool goes on, and so does whoever asks.
    future = process_pool.submit(jobs.stop_between_two_stores, str(tmp_path / "half"), gate)
    until(lambda: future.state == DYING)
    open_gate(tmp_path / "half")
    until(lambda: future._task.slot._words[jobs.SEQUENCE] & 1, "the half of a write")
    waited = []
    monkeypatch.setattr(_slots, "sleep", waited.append)
    assert future.state == DYING
    assert waited
    assert not any(waited)
    monkeypatch.undo()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    assert process_pool.submit(jobs.count, 3).result() == 3
    open_gate(gate)
    future.result()
    assert future.state == {"n": 8, "total": 9, "status": "done"}


@pytest.mark.slow
def test_a_worker_killed_at_any_moment_of_reporting_leaves_a_state_that_it_has_written():
    # The moment is what is tried here. Without luck the sequence is odd then, in the compiled form too.
    chance = random.Random(5)
    with make_executor("fork", 1) as executor:
        for _ in range(150):
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
            died, final = future.exception(timeout=AT_ONCE), future.state
            assert jobs.is_of_one_moment(died.state), died
            assert final == {**died.state, "status": "failed"}
            assert final["n"] >= before["n"]


# Those who wait otherwise


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
                await ProgressGroup(scene.futures[:1])
            else:
                async with asyncio.TaskGroup() as tg:
                    for future in scene.futures:
                        tg.create_task(future)

    if wait != "task group":
        with pytest.raises(WorkerDied):
            asyncio.run(main())
        scene.check()
        return
    with pytest.raises(ExceptionGroup) as error:
        asyncio.run(main())
    assert [type(each) for each in error.value.exceptions] == [WorkerDied]
    process_pool.shutdown()
    # It has the group cancel its siblings.
    assert scene.other.cancelled()
    assert all(future.cancelled() or future.result() is not None for future in scene.waiting)
    scene.check_told()


def test_a_group_whose_worker_died_has_failed(process_pool, tmp_path):
    scene = Scene(process_pool, tmp_path, jobs.die, "be_killed")
    group = ProgressGroup(scene.futures)
    states = watch(group)
    group.add_tqdm_callback(RecordedBar)
    scene.strike()
    open_gate(scene.gate)
    with pytest.raises(WorkerDied):
        group.result(timeout=DEADLINE)
    assert (group.state["status"], group.state["failed"]) == ("failed", 1)
    assert [new for _, new in states if new["status"] == "failed"] == [group.state]
    bar = scene.bars.pop()
    assert bar.closed == 1
    scene.check_told()


# The caller


CALLER = """
import multiprocessing, os, signal, sys, time
from progress_executor import *
for signum in (signal.SIGHUP, signal.SIGQUIT):  # which nohup and shells have what they start ignore
    signal.signal(signum, signal.SIG_DFL)
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
def be_stopped(file):
    entered(file)
    os.kill(os.getpid(), signal.SIGSTOP)
def wait_for_another_pool(file):
    with ProcessPoolProgressExecutor(1, multiprocessing.get_context(method)) as executor:
        executor.submit(stay_in_c, file).result()
method = sys.argv[1].split(",")[0]
if __name__ == "__main__":
    functions = step, never_report, stay_in_c, be_stopped, wait_for_another_pool
    executor = ProcessPoolProgressExecutor(len(functions), multiprocessing.get_context(method))
    files = [os.path.join(sys.argv[2], fn.__name__) for fn in functions]
    for fn, file in zip(functions, files):
        executor.submit(fn, file)
    for _ in range(20):
        executor.submit(bytes, bytes(1 << 20))
    while not all(map(os.path.exists, files)):
        time.sleep(0.001)
    if "beside" in sys.argv[1]:  # as a pool of the standard library would, whose workers do not end
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

BUSY_CALLER = """
import multiprocessing, sys
from progress_executor import *
if __name__ == "__main__":
    print("begun", flush=True)
    while True:
        with ProcessPoolProgressExecutor(3, multiprocessing.get_context(sys.argv[1])) as executor:
            for future in [executor.submit(bytes, bytes(size)) for size in (10, 1 << 20) * 10]:
                future.result()
"""


@pytest.fixture
def caller(tmp_path):
    """Starts a program as the leader of a session."""
    for name in ("entered", "temporary"):
        (tmp_path / name).mkdir()

    @contextlib.contextmanager
    def start(program, method):
        (tmp_path / "caller.py").write_text(program)
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", tmp_path / "caller.py", method, tmp_path / "entered"],
            stdout=subprocess.PIPE,
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
    assert time.monotonic() - killed < AT_ONCE
    # The forkserver's socket, which it does not remove itself, is what the standard library leaves, too.
    assert all(entry.name.startswith("pymp-") for entry in folder.iterdir())


@linux
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_of_a_killed_caller(method, caller, tmp_path):
    with caller(CALLER, method) as process:
        assert process.stdout.readline() == "all run\n"
        assert len(session(process.pid)) >= 7
        kill_and_check(process, tmp_path / "temporary")


@linux
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT"])
def test_nothing_is_left_when_the_terminal_ends_the_whole_group(name, method, caller):
    """SIGHUP comes when its window is closed."""
    with caller(CALLER, method) as process:
        assert process.stdout.readline() == "all run\n"
        os.killpg(process.pid, getattr(signal, name))
        assert process.wait(DEADLINE) == -getattr(signal, name)
        until(lambda: not session(process.pid), "the end of all processes")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("method", START_METHODS)
def test_nothing_is_left_of_a_caller_killed_at_any_moment(method, caller, tmp_path):
    chance = random.Random(7)
    for _ in range(20 if method == "fork" else 10):
        with caller(BUSY_CALLER, method) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(chance.uniform(0, 0.2 if method == "fork" else 1))  # the moment is what is tried here
            kill_and_check(process, tmp_path / "temporary")


@linux
def test_a_killed_worker_is_missed_though_another_pool_started_in_the_midst_of_its_start(monkeypatch, gate):
    """Or another one forked: between the making of each pipe and the fork, and would hold the pipe."""
    main, ends_of, threads = threading.current_thread(), os.pipe, []
    fork = multiprocessing.get_context("fork").Process

    def pipe():
        ends = ends_of()
        if threading.current_thread() is main:
            threads.append(threading.Thread(target=lambda: fork(target=jobs.wait_for, args=(gate,)).start()))
            threads[-1].start()
            threads[-1].join(0.2)  # it may have to wait
        return ends

    monkeypatch.setattr(os, "pipe", pipe)
    with make_executor("fork", 1) as executor:
        future = executor.submit(jobs.step_until, gate)
        try:
            for thread in threads:
                thread.join()
            assert len(threads) >= 3
            until(lambda: future.state["n"])
            os.kill(*executor._processes, signal.SIGKILL)
            with pytest.raises(WorkerDied):
                future.result(AT_ONCE)
        finally:
            open_gate(gate)


@linux
def test_workers_of_a_killed_caller_end_though_a_process_that_it_forked_lives_on(caller):
    with caller(CALLER, "fork, and another one beside") as process:
        beside = int(process.stdout.readline())
        assert process.stdout.readline() == "all run\n"
        process.kill()
        killed = time.monotonic()
        try:
            until(lambda: not session(process.pid), "the end of the workers")
            assert time.monotonic() - killed < AT_ONCE
            os.kill(beside, 0)
        finally:
            os.kill(beside, signal.SIGKILL)
