"""A task that is paused stands still at its next progress call, until it is resumed or cancelled."""

import _thread
import asyncio
import concurrent.futures
import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
import tqdm

import progress_executor
from progress_executor import ProgressGroup, SyncProgressExecutor, Updater
from progress_executor._slots import Slot
from progress_executor._speedups import _waiting

from . import jobs
from .conftest import CONCURRENT, DEADLINE, POOLS, START_METHODS, make_executor, open_gate, session, until
from .test_futures import watch

ON_DASK = () if "dask" not in CONCURRENT else progress_executor.DaskProgressExecutor


def stand_still(future):
    """Pause it, and wait until it stands; its n."""
    assert future.pause()
    until(lambda: future.state["status"] == "paused", "standing still")
    return future.state["n"]


def test_a_paused_task_stands_still_until_it_is_resumed(each_pool, gate):
    future = each_pool.submit(jobs.step_until, gate)
    until(lambda: future.state["n"] > 0)
    n = stand_still(future)
    assert future.paused
    assert future.running()
    time.sleep(0.25)  # more than two intervals, in which it would have made hundreds of steps
    assert future.state == {"n": n, "total": None, "status": "paused"}
    assert future.resume()
    assert not future.paused
    until(lambda: future.state["n"] > n)
    assert future.state["status"] == "running"
    open_gate(gate)
    assert future.result() > n


def test_its_own_status_is_there_again_when_it_goes_on(each_pool, gate):
    future = each_pool.submit(jobs.report_and_step, 3, 9, "a text", gate)
    until(lambda: future.state["status"] == "a text")
    stand_still(future)
    future.resume()
    until(lambda: future.state["status"] == "a text")
    open_gate(gate)
    future.result()


def test_callbacks_see_it_stand_and_go_on(each_pool, gate):
    future = each_pool.submit(jobs.step_until, gate)
    states = watch(future)
    waiting = threading.Thread(target=future.exception)
    waiting.start()
    until(lambda: future.state["n"] > 0)
    stand_still(future)
    until(lambda: states and states[-1][1]["status"] == "paused")
    future.resume()
    until(lambda: states[-1][1]["status"] == "running")
    open_gate(gate)
    waiting.join()
    assert states[-1][1]["status"] == "done"


def test_a_pending_task_that_is_paused_begins_and_stands_at_its_first_call(each_pool, gate, tmp_path, caplog):
    running = [each_pool.submit(jobs.wait_for, gate) for _ in range(2)]
    future = each_pool.submit(jobs.step_until, str(tmp_path / "second"))
    assert future.pause()
    assert future.state["status"] == "pending"
    open_gate(gate)
    until(lambda: future.state["status"] == "paused")
    assert future.running()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    n = future.state["n"]
    if not isinstance(each_pool, ON_DASK):  # a worker hears of it when it has told that the task has begun
        assert n == 1
    future.resume()
    until(lambda: future.state["n"] > n)
    open_gate(tmp_path / "second")
    assert future.result(DEADLINE) > n
    assert [task.result() for task in running] == ["waited"] * 2


def test_a_task_that_never_reports_keeps_its_value_though_it_was_paused(each_pool, gate, caplog):
    running = [each_pool.submit(jobs.wait_for, gate) for _ in range(2)]
    future = each_pool.submit(jobs.add, 1)
    assert future.pause()
    open_gate(gate)
    assert future.result(DEADLINE) == 2
    assert [task.result() for task in running] == ["waited"] * 2
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_thread_that_outlives_a_paused_task_does_not_stand_for_ever(each_pool, gate, tmp_path):
    ended, counted = tmp_path / "ended", tmp_path / "counted"
    future = each_pool.submit(jobs.leave_a_thread_that_counts, str(ended), str(counted), gate)
    until(future.running)
    future.pause()
    if isinstance(each_pool, ON_DASK):
        time.sleep(0.2)  # its worker is told
    open_gate(ended)
    assert future.result(DEADLINE) is None
    open_gate(gate)
    until(counted.exists)


def test_the_clock_of_a_task_that_only_checks_stands_while_it_does(each_pool, gate):
    future = each_pool.submit(jobs.check_until, gate)
    until(lambda: future._source().view().since is not None)
    stand_still(future)
    time.sleep(0.5)
    future.resume()
    until(lambda: future.state["status"] == "running")
    since = future._source().view().since
    assert since - future._task.began() > 0.4
    open_gate(gate)
    future.result(DEADLINE)
    assert abs(future._source().view().since - since) < 0.2


def test_what_is_to_stop_is_not_paused(each_pool, gate):
    future = each_pool.submit(jobs.wait_for, gate)
    until(lambda: future._source().view().since is not None)
    future.cancel()
    future.pause()
    assert not future.paused
    open_gate(gate)
    assert future.result(DEADLINE) == "waited"


def test_one_that_is_paused_and_resumed_before_it_begins_does_not_stand(each_pool, gate):
    running = [each_pool.submit(jobs.wait_for, gate) for _ in range(2)]
    future = each_pool.submit(jobs.count, 3)
    future.pause()
    future.resume()
    open_gate(gate)
    assert future.result(DEADLINE) == 3
    assert [task.result() for task in running] == ["waited"] * 2


def test_cancelling_wakes_it(each_pool, gate):
    future = each_pool.submit(jobs.step_until, gate)
    until(lambda: future.state["n"] > 0)
    n = stand_still(future)
    assert future.cancel("enough")
    with pytest.raises(concurrent.futures.CancelledError, match="enough"):
        future.result(DEADLINE)
    assert future.state == {"n": n, "total": None, "status": "cancelled"}
    assert not future.paused


def test_ctrl_c_in_the_with_block_stops_what_stands_still(each_pool, gate):
    with pytest.raises(KeyboardInterrupt), each_pool:
        future = each_pool.submit(jobs.step_until, gate)
        until(lambda: future.state["n"] > 0)
        stand_still(future)
        raise KeyboardInterrupt
    assert future.cancelled()


def test_while_it_stands_it_uses_no_processor(each_pool, tmp_path):
    def share(gate):
        future = each_pool.submit(jobs.say_what_it_used, gate)
        until(future.running)
        future.pause()
        if isinstance(each_pool, ON_DASK):
            time.sleep(0.2)  # its worker is told
        open_gate(gate)
        until(lambda: future.state["status"] == "paused")
        time.sleep(1)
        future.resume()
        used, taken = future.result(DEADLINE)
        assert taken > 0.9
        return used / taken

    # Of three attempts one is enough: on a busy machine each look takes longer.
    assert any(share(str(tmp_path / f"gate {attempt}")) < 0.005 for attempt in range(3))


def test_it_goes_on_soon(each_pool, gate):
    future = each_pool.submit(jobs.step_until, gate)
    until(lambda: future.state["n"] > 0)
    n = stand_still(future)
    resumed = time.monotonic()
    future.resume()
    until(lambda: future.state["n"] > n)
    assert time.monotonic() - resumed < 1
    open_gate(gate)
    future.result()


def test_a_pause_is_no_time_for_a_bar(each_pool, gate):
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

        def close(self):
            if not hasattr(self, "elapsed"):
                self.elapsed = self.format_dict["elapsed"]
            super().close()

    future = each_pool.submit(jobs.step_until, gate)
    future.add_tqdm_callback(Bar, {"file": io.StringIO()})
    waiting = threading.Thread(target=future.exception)
    until(lambda: future.state["n"] > 0)
    began = time.monotonic()
    waiting.start()
    stand_still(future)
    time.sleep(1.5)
    future.resume()
    until(lambda: future.state["status"] == "running")
    open_gate(gate)
    waiting.join()
    taken = time.monotonic() - began
    (bar,) = bars
    assert 0 < bar.elapsed < taken - 1.3 + 0.5  # the time before `began`


def test_the_time_of_a_task_stands_while_it_does(each_pool, gate):
    future = each_pool.submit(jobs.step_until, gate)
    until(lambda: future.state["n"] > 0)
    stand_still(future)
    before = time.time() - future._source().view().since
    time.sleep(0.5)
    assert abs(time.time() - future._source().view().since - before) < 0.2
    future.resume()
    until(lambda: future.state["status"] == "running")
    since = future._source().view().since
    open_gate(gate)
    future.result()
    assert abs(future._source().view().since - since) < 0.2


def test_all_threads_of_a_task_stand_still(each_pool, gate):
    future = each_pool.submit(jobs.step_in_threads_until, gate, 3)
    until(lambda: future.state["n"] > 0)
    stand_still(future)

    def no_more_counted():
        n = future.state["n"]
        time.sleep(0.2)
        return future.state["n"] == n

    until(no_more_counted, "the last of them to stand, too")
    n = future.state["n"]
    time.sleep(0.2)
    assert future.state["n"] == n
    future.resume()
    until(lambda: future.state["n"] > n)
    open_gate(gate)
    assert future.result() > n


def test_from_many_threads_the_last_word_holds(each_pool, gate):
    future = each_pool.submit(jobs.step_until, gate)
    until(lambda: future.state["n"] > 0)

    def pause_and_resume():
        for _ in range(50):
            future.pause()
            future.resume()

    threads = [threading.Thread(target=pause_and_resume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    n = stand_still(future)
    future.resume()
    until(lambda: future.state["n"] > n)
    open_gate(gate)
    future.result()


def test_a_done_future_cannot_be_paused(each_pool):
    future = each_pool.submit(jobs.count, 3)
    future.result()
    assert not future.pause()
    assert not future.resume()
    assert not future.paused


def test_a_pool_that_has_paused_a_task_runs_the_next_one_in_its_slot_at_once(each_pool, gate):
    future = each_pool.submit(jobs.step_until, gate)
    until(lambda: future.state["n"] > 0)
    stand_still(future)
    future.cancel()
    assert [each_pool.submit(jobs.count, 3).result(DEADLINE) for _ in range(30)] == [3] * 30


def test_the_sync_executor_pauses_nothing_as_nobody_could_resume_it():
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.count, 3)
        with pytest.raises(RuntimeError, match="paused"):
            future.pause()
        with pytest.raises(RuntimeError, match="paused"):
            ProgressGroup([future]).pause()
        assert not future.paused
        assert future.resume()
        assert future.result() == 3
        assert not future.pause()
        assert not ProgressGroup([future]).pause()


def test_a_group_stands_still_as_a_whole(each_pool, gate):
    group = ProgressGroup([each_pool.submit(jobs.report_and_step, 1, 10**9, "", gate) for _ in range(2)])
    until(lambda: all(future.state["n"] for future in group.futures))
    assert not group.paused
    assert group.pause()
    assert group.paused
    until(lambda: all(future.state["status"] == "paused" for future in group.futures))
    assert group.state["status"] == "paused"
    assert group._source().view().described() == "2 paused"
    n, since = group.state["n"], group._source().view().since
    time.sleep(0.3)
    assert group.state["n"] == n
    assert group._source().view().since - since > 0.2
    assert group.resume()
    assert not group.paused
    until(lambda: group.state["n"] > n)
    assert group._source().view().since - since > 0.2
    since = group._source().view().since
    open_gate(gate)
    group.result()
    assert group._source().view().since == since
    assert not group.pause()


@pytest.mark.parametrize("first", ["thread", "sync"])
def test_a_group_of_which_one_cannot_be_paused_pauses_none_and_resumes_all(first, gate):
    with make_executor("thread") as threads, SyncProgressExecutor() as sync:
        running, lazy = threads.submit(jobs.step_until, gate), sync.submit(jobs.count, 3)
        group = ProgressGroup([running, lazy] if first == "thread" else [lazy, running])
        with pytest.raises(RuntimeError, match="paused"):
            group.pause()
        assert not running.paused
        running.pause()
        assert group.resume()
        assert not running.paused
        open_gate(gate)


def test_the_time_for_which_a_group_was_paused_before_it_began_is_not_taken_off(gate):
    with make_executor("thread", 1) as pool:
        busy = pool.submit(jobs.wait_for, gate)
        group = ProgressGroup([pool.submit(jobs.report_and_step, 1, 10**9, "", gate + "2")])
        group.pause()
        time.sleep(0.5)
        open_gate(gate)
        until(lambda: group.state["status"] == "paused")
        group.resume()
        until(lambda: group.state["n"])
        assert 0 <= group._source().view().since - group._group._began < 0.3
        busy.result()
        group.cancel()


def test_the_clock_of_a_group_that_ends_while_it_stands_ends_there(gate):
    with make_executor("thread", 1) as pool:
        group = ProgressGroup([pool.submit(jobs.report_and_step, 1, 10**9, "", gate)])
        until(lambda: group.state["n"])
        time.sleep(0.5)
        group.pause()
        until(lambda: group.state["status"] == "paused")
        group.cancel()
        until(group.done)
        time.sleep(0.7)
        assert group.state["status"] == "cancelled"
        assert group._source().view().ended - group._source().view().since > 0.4


def test_a_group_whose_members_were_resumed_one_by_one_is_not_paused(gate):
    with make_executor("thread") as pool:
        group = ProgressGroup([pool.submit(jobs.report_and_step, 1, 10**9, "", gate) for _ in range(2)])
        until(lambda: all(future.state["n"] for future in group.futures))
        group.pause()
        until(lambda: group.state["status"] == "paused")
        group.futures[0].resume()
        assert not group.paused
        until(lambda: group.state["status"] == "running")
        since = group._source().view().since
        time.sleep(0.05)
        assert group._source().view().since == since
        group.resume()
        open_gate(gate)


@pytest.mark.parametrize("method", START_METHODS)
def test_a_worker_that_is_killed_while_its_task_stands_breaks_the_pool_as_ever(method, tmp_path):
    with make_executor(method, 1) as executor:
        future = executor.submit(jobs.report_pid, str(tmp_path / "gate"))
        until(lambda: future.state["status"].isdecimal())
        pid = int(future.state["status"])
        n = stand_still(future)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            future.result(DEADLINE)
        assert future.state == {"n": n, "total": None, "status": "failed"}


CALLER = """
import sys
from progress_executor import ProcessPoolProgressExecutor
from tests import jobs
from tests.conftest import make_executor, until
executor = make_executor(sys.argv[1], 1)
future = executor.submit(jobs.step_until, sys.argv[2])
until(lambda: future.state["n"])
future.pause()
until(lambda: future.state["status"] == "paused")
print("stands", flush=True)
future.result()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows the processes of a session")
@pytest.mark.parametrize("method", START_METHODS)
def test_a_worker_whose_task_stands_ends_with_its_caller(method, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", CALLER, method, str(tmp_path / "gate")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process:
        assert process.stdout.readline() == "stands\n"
        process.kill()
        until(lambda: not session(process.pid), "the end of all processes")


@pytest.mark.parametrize("kind", POOLS)
def test_it_is_paused_and_resumed_from_an_event_loop(kind, gate):
    async def main():
        async with make_executor(kind) as executor:
            future = executor.submit(jobs.step_until, gate)
            awaited = asyncio.ensure_future(future.check_for_progress())
            while not future.state["n"]:
                await asyncio.sleep(0.001)
            future.pause()
            while future.state["status"] != "paused":
                await asyncio.sleep(0.001)
            future.resume()
            open_gate(gate)
            return await awaited

    assert asyncio.run(main()) > 0


# The hot path


@pytest.mark.parametrize("who", ["task", "part", "task that has a part", "part that has a part"])
def test_whoever_counts_stands_still_and_not_for_ever_when_the_task_has_ended(who):
    slot = Slot()
    progress = Updater(slot.buffer)
    slot.start(1.0)
    part = progress.sub(3, total=10) if "part" in who else None
    inner = part.sub(1, total=3) if who == "part that has a part" else None
    counting = part if who.startswith("part") else progress
    slot.pause(True)
    standing = threading.Thread(target=counting.update)
    standing.start()
    until(lambda: slot.snapshot()["status"] == "paused")
    slot.pause(False)
    standing.join(DEADLINE)
    assert not standing.is_alive()
    assert slot.snapshot()["status"] == "running"
    slot.pause(True)
    standing = threading.Thread(target=counting.update)
    standing.start()
    until(lambda: slot.snapshot()["status"] == "paused")
    progress._detach()
    standing.join(DEADLINE)
    assert not standing.is_alive()
    counting.update()
    assert counting.n == 3
    del inner


def test_a_signal_that_comes_between_two_looks_interrupts_it(monkeypatch):
    """Compiled code would not hear of it."""
    slot = Slot()
    progress = Updater(slot.buffer)
    slot.pause(True)
    before = signal.signal(signal.SIGALRM, lambda *_: slot.pause(False))
    monkeypatch.setattr(_waiting, "sleep", lambda seconds: _thread.interrupt_main(signal.SIGALRM))
    try:
        progress.update()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert progress.n == 1


def test_what_interrupts_the_standing_leaves_it():
    slot = Slot()
    slot.start(1.0)
    progress = Updater(slot.buffer)
    slot.pause(True)
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            progress.update()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert slot.snapshot() == {"n": 1, "total": None, "status": "running"}
    assert slot.paused_seconds > 0.03


def test_counting_floats_and_large_ints_stands_still_too():
    for start in (0.5, 2**100):
        slot = Slot()
        slot.start(1.0)
        progress = Updater(slot.buffer)
        progress.n = start
        slot.pause(True)
        standing = threading.Thread(target=progress.update, args=(start,))
        standing.start()
        until(lambda: slot.snapshot()["status"] == "paused")  # noqa: B023
        slot.pause(False)
        standing.join(DEADLINE)
        assert progress.n == 2 * start


def test_what_asks_without_counting_does_not_stand():
    slot = Slot()
    progress = Updater(slot.buffer)
    slot.pause(True)
    assert not progress.cancelled
    assert progress.n == 0
    progress.close()
