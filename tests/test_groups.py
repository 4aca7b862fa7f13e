"""Groups of futures: one state, one bar, cancel and await for all."""

import asyncio
import concurrent.futures
import gc
import io
import signal
import sys
import threading
import weakref

import pytest
import tqdm

from progress_executor import (
    ProcessPoolProgressExecutor,
    ProgressGroup,
    SyncProgressExecutor,
    ThreadPoolProgressExecutor,
    _deadlines,
)

from . import jobs
from .conftest import DEADLINE, KINDS, make_executor, open_gate, until
from .test_kill import pool_of

NOTHING = {"pending": 0, "running": 0, "done": 0, "failed": 0, "cancelled": 0}


def watch(group):
    states = []
    group.add_progress_callback(lambda old, new: states.append((old, new)))
    return states


def test_n_and_total_are_sums(executor):
    group = ProgressGroup([executor.submit(jobs.count, n) for n in (3, 4, 5)])
    assert group.result() == [3, 4, 5]
    assert group.state == {**NOTHING, "n": 12, "total": 12, "status": "done", "done": 3}


def test_values_come_in_the_order_of_the_members(executor):
    futures = [executor.submit(jobs.add, n) for n in range(20)]
    assert ProgressGroup(reversed(futures)).result() == list(range(20, 0, -1))


def test_members_that_tell_no_total_count_as_tasks(pool, gate):
    futures = [pool.submit(jobs.add, 1), pool.submit(jobs.wait_for, gate), pool.submit(jobs.add, 2)]
    group = ProgressGroup(futures)
    until(lambda: group.state == {**NOTHING, "n": 2, "total": 3, "status": "running", "done": 2, "running": 1})
    open_gate(gate)
    group.result()
    assert group.state == {**NOTHING, "n": 3, "total": 3, "status": "done", "done": 3}


def test_pending_members_count_as_tasks_of_average_size(pool, gate):
    futures = [pool.submit(jobs.report_and_wait, 7, 20, "", gate), pool.submit(jobs.report_and_wait, 1, 10, "", gate)]
    until(lambda: all(future.state["n"] for future in futures))
    futures += [pool.submit(jobs.count, 3) for _ in range(4)]
    group = ProgressGroup(futures)
    until(lambda: group.state == {**NOTHING, "n": 8, "total": 30 + 4 * 15, "status": "running", "running": 2, "pending": 4})
    open_gate(gate)
    group.result()
    assert group.state == {**NOTHING, "n": 7 + 1 + 12, "total": 30 + 12, "status": "done", "done": 6}


def test_failed_and_cancelled_members_are_counted_and_stay_where_they_stopped(pool, gate):
    futures = [pool.submit(jobs.count_then_fail, 4), pool.submit(jobs.step_until, gate)]
    until(futures[0].done)
    until(lambda: futures[1].state["n"] > 0)
    futures.append(pool.submit(jobs.count, 2))
    group = ProgressGroup(futures)
    until(futures[2].done)
    futures[1].cancel()
    with pytest.raises(ValueError, match=r".*"):
        group.result()
    state = group.state
    assert (state["status"], state["failed"], state["cancelled"], state["done"]) == ("failed", 1, 1, 1)
    assert state["n"] >= 6


def test_a_group_of_nothing_is_done():
    group = ProgressGroup([])
    states = watch(group)
    assert group.result() == []
    assert group.done()
    assert [new for _, new in states] == [{**NOTHING, "n": 0, "total": 0, "status": "done"}]
    assert asyncio.run(_await(group)) == []


async def _await(group):
    return await group


def test_the_same_future_twice_is_one_member_with_two_values(executor):
    future = executor.submit(jobs.count, 3)
    group = ProgressGroup([future, future])
    assert group.result() == [3, 3]
    assert group.state["total"] == 3


def test_what_is_no_future_of_ours_is_an_error():
    with pytest.raises(TypeError, match="not of Future"):
        ProgressGroup([concurrent.futures.Future()])


def test_the_final_state_comes_once_and_last(executor):
    group = ProgressGroup([executor.submit(jobs.count, n) for n in (3, 4)])
    states = watch(group)
    group.result()
    group.result()
    assert states[-1][1] == {**NOTHING, "n": 7, "total": 7, "status": "done", "done": 2}
    assert [new["status"] for _, new in states].count("done") == 1
    assert [old for old, _ in states[1:]] == [new for _, new in states[:-1]]


def test_progress_is_delivered_while_it_waits(executor):
    group = ProgressGroup([executor.submit(jobs.count_slowly, 30, 0.01) for _ in range(2)])
    states = watch(group)
    group.result()
    seen = [new["n"] for _, new in states]
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == 60


def test_a_removed_callback_is_not_called(executor):
    group = ProgressGroup([executor.submit(jobs.count, 3)])
    called = []
    group.add_progress_callback(called.append)
    group.remove_progress_callback(called.append)
    group.result()
    assert not called


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_the_executor_tells_a_group_that_nobody_waits_for(kind):
    with make_executor(kind) as executor:
        group = ProgressGroup([executor.submit(jobs.count, 3) for _ in range(3)])
        states = watch(group)
    assert states[-1][1] == {**NOTHING, "n": 9, "total": 9, "status": "done", "done": 3}


def test_waiting_for_a_member_delivers_the_group(pool, gate):
    member = pool.submit(jobs.count_slowly, 20, 0.01)
    group = ProgressGroup([member, pool.submit(jobs.step_until, gate)])
    states = watch(group)
    member.result()
    assert states
    open_gate(gate)


def test_members_may_be_of_several_executors():
    with (
        ThreadPoolProgressExecutor(1) as threads,
        ProcessPoolProgressExecutor(1) as processes,
        SyncProgressExecutor() as sync,
    ):
        group = ProgressGroup([executor.submit(jobs.count, 5) for executor in (threads, processes, sync)])
        states = watch(group)
        assert group.result() == [5, 5, 5]
    assert [new["status"] for _, new in states].count("done") == 1
    assert states[-1][1]["n"] == 15


def test_cancel_cancels_all_members(pool, gate):
    futures = [pool.submit(jobs.step_until, gate) for _ in range(6)]
    until(lambda: futures[0].state["n"] > 0)
    group = ProgressGroup(futures)
    assert group.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        group.result()
    assert group.state["status"] == "cancelled"
    assert group.state["cancelled"] == 6


def test_cancel_kills_the_members_that_do_not_stop():
    with pool_of("process") as pool:
        futures = [pool.submit(jobs.hang_by, "a loop"), *(pool.submit(jobs.step_until, "") for _ in range(5))]
        until(lambda: futures[0].state["n"] and futures[1].state["n"])
        group = ProgressGroup(futures)
        assert group.cancel("why", kill_after=0.1)
        with pytest.raises(concurrent.futures.CancelledError, match="why"):
            group.result(DEADLINE)
        assert group.state["cancelled"] == 6
        assert futures[0].state["n"] == 7
        assert not group.cancel(kill_after=0)


@pytest.mark.parametrize(
    ("error", "mistake"), [(ValueError, {"kill_after": 0}), (TypeError, {"kill_after": "0"}), (TypeError, {"msg": 1})]
)
def test_no_member_is_asked_to_stop_where_one_cannot_be(error, mistake, gate):
    with make_executor("process", 1) as processes, make_executor("thread", 1) as threads:
        group = ProgressGroup([pool.submit(jobs.step_until, gate) for pool in (processes, threads, processes)])
        with pytest.raises(error):
            group.cancel(**mistake)
        asked = [future.cancel_requested() for future in group.futures]
        open_gate(gate)
        assert not any(asked)
        group.result()


def test_each_member_has_the_deadline_of_its_group(executor):
    futures = [executor.submit(jobs.count_slowly, 10**4, 0.001) for _ in range(4)]
    ProgressGroup([*futures, executor.submit(jobs.add, 1)]).set_deadline(timeout=0.2)
    assert {str(future.exception()) for future in futures} == {"the task ran for longer than 0.2 s"}
    assert all(future.state["n"] for future in futures)  # those that were pending had their time, too


def test_the_deadline_of_a_group_kills_the_members_that_do_not_stop():
    with pool_of("process") as pool:
        group = ProgressGroup([pool.submit(jobs.hang_by, "swallowed errors") for _ in range(3)])
        group.set_deadline(stall=0.1, kill_after=0.1)
        assert {str(future.exception(DEADLINE)) for future in group.futures} == {"no progress for 0.1 s"}
        assert group.state["failed"] == 3


def test_the_deadline_of_a_group_can_be_removed(pool, gate):
    group = ProgressGroup([pool.submit(jobs.step_until, gate) for _ in range(4)])
    group.set_deadline(timeout=1000)
    group.set_deadline()
    assert not any(future._task in _deadlines._timer._monitors.get(future._task.monitor, ()) for future in group.futures)
    open_gate(gate)
    group.result()


@pytest.mark.parametrize(
    ("error", "mistake"), [(ValueError, {"timeout": 0}), (TypeError, {"stall": "1"}), (ValueError, {"kill_after": 0})]
)
def test_the_deadline_of_a_group_is_checked(error, mistake):
    with ThreadPoolProgressExecutor(1) as executor:
        group = ProgressGroup([executor.submit(jobs.count, 3)])
        with pytest.raises(error):
            group.set_deadline(**{"timeout": 1, **mistake})
        assert group.result() == [3]


def test_a_done_group_cannot_be_cancelled(executor):
    group = ProgressGroup([executor.submit(jobs.count, 1)])
    group.result()
    assert not group.cancel()


def test_a_callback_may_cancel_the_group(executor):
    group = ProgressGroup([executor.submit(jobs.count_slowly, 10**6, 0.001) for _ in range(2)])
    group.add_progress_callback(lambda old, new: new["n"] and group.cancel())
    with pytest.raises(concurrent.futures.CancelledError):
        group.result()


def test_a_callback_that_waits_for_its_own_group_is_told_so(caplog, executor):
    group = ProgressGroup([executor.submit(jobs.count_slowly, 20, 0.01)])
    group.add_progress_callback(lambda old, new: group.result() if new["status"] == "running" else None)
    group.result()
    assert "cannot wait for the group that it watches" in caplog.text


def test_a_timeout_is_kept(pool, gate):
    group = ProgressGroup([pool.submit(jobs.wait_for, gate), pool.submit(jobs.add, 1)])
    with pytest.raises(TimeoutError):
        group.result(timeout=0.05)
    open_gate(gate)
    assert group.result() == ["waited", 2]


def test_a_group_can_be_awaited(executor):
    async def main():
        group = ProgressGroup([executor.submit(jobs.count_slowly, 30, 0.01) for _ in range(2)])
        states = watch(group)
        values = await group
        return values, states

    values, states = asyncio.run(main())
    assert values == [30, 30]
    assert len(states) > 2
    assert states[-1][1]["n"] == 60


def test_check_for_progress_raises_like_a_member(executor):
    async def main():
        group = ProgressGroup([executor.submit(jobs.count, 2), executor.submit(jobs.count_then_fail, 2)])
        await group.check_for_progress(0.01)

    with pytest.raises(ValueError, match=r".*"):
        asyncio.run(main())


@pytest.mark.parametrize("started", [True, False])
def test_cancelling_who_awaits_cancels_the_members(pool, gate, started):
    async def main():
        futures = [pool.submit(jobs.step_until, gate) for _ in range(4)]
        group = ProgressGroup(futures)
        states = watch(group)
        task = asyncio.create_task(group.check_for_progress(0.01))
        if started:
            while not any(new["running"] for _, new in states):
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not (states and states[-1][1]["status"] == "cancelled"):  # the loop goes on delivering
            await asyncio.sleep(0.01)
        return futures

    assert all(future.cancelled() for future in asyncio.run(main()))


def test_awaiting_a_group_with_a_cancelled_member_raises_asyncios_error(pool, gate):
    async def main():
        futures = [pool.submit(jobs.step_until, gate) for _ in range(4)]
        group = ProgressGroup(futures)
        futures[-1].cancel()
        open_gate(gate)
        with pytest.raises(asyncio.CancelledError):
            await group

    asyncio.run(main())


def test_an_interval_must_be_positive(executor):
    group = ProgressGroup([executor.submit(jobs.count, 1)])
    with pytest.raises(ValueError, match="interval"):
        group.check_for_progress(0)


def test_a_bar_shows_the_sums_and_the_counts(executor):
    file = io.StringIO()
    group = ProgressGroup([executor.submit(jobs.count, 5), executor.submit(jobs.count_then_fail, 4)])
    group.add_tqdm_callback(tqdm.tqdm, {"file": file, "desc": "all"})
    with pytest.raises(ValueError, match=r".*"):
        group.result()
    assert file.getvalue().splitlines()[-1].split("\r")[-1].startswith("all: 100%|")
    assert "9/9" in file.getvalue()
    assert "1 done, 1 failed" in file.getvalue()


def test_ten_thousand_members_are_watched_at_the_cost_of_those_that_run():
    calls = {}
    for members in (10, 10_000):
        go, running = threading.Event(), threading.Semaphore(0)

        def work(progress, go=go, running=running):
            progress.total = 10
            running.release()
            go.wait()

        with ThreadPoolProgressExecutor(3) as executor:
            group = ProgressGroup([executor.submit(work) for _ in range(members)])
            watch(group)
            for _ in range(3):
                running.acquire()
            assert group.state["running"] == 3
            counted = []
            sys.setprofile(lambda frame, event, argument, counted=counted: counted.append(event))
            try:
                group.state  # noqa: B018
            finally:
                sys.setprofile(None)
            calls[members] = len(counted)
            group.cancel()
            go.set()
    assert calls[10] == calls[10_000]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_done_callback_that_interrupts_keeps_no_member_from_being_cancelled(error, gate):
    def interrupt(_):
        raise error("of a callback")

    with make_executor("thread", 1) as pool:
        group = ProgressGroup([pool.submit(jobs.step_until, gate) for _ in range(5)])
        until(lambda: group.futures[0].state["n"])
        group.futures[3].add_done_callback(interrupt)
        with pytest.raises(error, match="of a callback"):
            group.cancel()
        until(group.done)
        assert all(future.cancelled() for future in group.futures)


@pytest.mark.slow
def test_the_bar_of_ten_thousand_tasks_is_live_and_ends_with_all_of_them(local_pool):
    shown = []

    class Bar(tqdm.tqdm):
        def refresh(self, *args, **kwargs):
            shown.append((self.n, self.total, self.postfix))

    group = ProgressGroup([local_pool.submit(jobs.count_slowly, 1, 0.0003) for _ in range(10_000)])
    group.add_tqdm_callback(Bar, {"file": io.StringIO(), "gui": True})  # gui: drawn by its own refresh only
    assert sum(group.result()) == 10_000
    ns = [n for n, _, _ in shown]
    assert ns == sorted(ns)
    assert len(set(ns)) > 5
    assert all(total == 10_000 for _, total, _ in shown)
    assert shown[-1][::2] == (10_000, "10000 done")


def test_members_that_end_at_every_moment_are_counted_once():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            with ThreadPoolProgressExecutor(4) as executor:
                group = ProgressGroup([executor.submit(jobs.set_all, 3, 3, "a text") for _ in range(50)])
                last = 0
                while not group.done():
                    state = group.state
                    assert sum(state[name] for name in NOTHING) == 50
                    assert state["done"] >= last
                    last = state["done"]
                assert group.state == {**NOTHING, "n": 150, "total": 150, "status": "done", "done": 50}
    finally:
        sys.setswitchinterval(interval)


def test_a_group_is_not_told_to_be_done_before_it_is(pool):
    def linger(_):
        until(lambda: states)

    member = pool.submit(jobs.count_slowly, 5, 0.01)
    member.add_done_callback(linger)
    group = ProgressGroup([member])
    states = []
    group.add_progress_callback(lambda old, new: states.append((new["status"], group.done())))
    group.result()
    assert states[-1] == ("done", True)
    assert ("done", False) not in states
    assert [status for status, _ in states].count("done") == 1


def test_a_group_is_done_with_its_last_member_however_slow_its_done_callbacks_are(pool, gate):
    go = threading.Event()
    for _ in range(8):
        pool.submit(jobs.wait_for, gate)
    member = pool.submit(jobs.add, 1)
    member.add_done_callback(lambda _: go.wait())
    group = ProgressGroup([member])
    states = watch(group)
    canceller = threading.Thread(target=member.cancel)
    canceller.start()
    try:
        with pytest.raises(concurrent.futures.CancelledError):
            member.result()
        assert group.done()
        with pytest.raises(concurrent.futures.CancelledError):
            group.result()
        assert states[-1][1]["status"] == "cancelled"
    finally:
        go.set()
        canceller.join()
    open_gate(gate)


def test_a_sync_group_is_told_its_progress_in_whichever_thread_waits():
    with SyncProgressExecutor() as executor:
        group = ProgressGroup([executor.submit(jobs.count_slowly, 30, 0.02)])
        threads = []
        group.add_progress_callback(lambda old, new: threads.append(threading.get_ident()))
        waiter = threading.Thread(target=group.result)
        waiter.start()
        ident = waiter.ident
        waiter.join()
    assert len(threads) > 3
    assert set(threads) == {ident}


def test_an_interrupt_while_the_state_is_summed_loses_no_member(monkeypatch):
    with ThreadPoolProgressExecutor(1) as executor:
        futures = [executor.submit(jobs.count, 3) for _ in range(3)]
        concurrent.futures.wait(futures)
        group = ProgressGroup(futures)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(futures[1]._task, "_final", _InterruptsInTheMidst())
            group.state  # noqa: B018
        assert group.state == {**NOTHING, "n": 9, "total": 9, "status": "done", "done": 3}


class _InterruptsInTheMidst:
    def copy(self):
        return self

    def __getitem__(self, name):
        if name == "total":
            raise KeyboardInterrupt
        return "done"


def test_the_state_of_ended_members_is_read_without_the_lock_of_their_executor(pool):
    # In which a finalizer may ask for it, while this thread has the lock of the group.
    group = ProgressGroup([pool.submit(jobs.count, 3)])
    concurrent.futures.wait(group.futures)
    states = []
    asker = threading.Thread(target=lambda: states.append(group.state), daemon=True)
    with pool._monitor.lock:
        asker.start()
        until(lambda: states)


def test_a_callback_that_is_added_while_a_group_ends_is_told_once(pool, gate):
    states = []
    group = ProgressGroup([pool.submit(jobs.step_until, gate)])
    leave = group._group._leave_to_be_told

    def leave_and_add():
        leave()
        if not states:
            group.add_progress_callback(lambda old, new: states.append(new["status"]))
            group._group._leave_to_be_told = leave

    group._group._leave_to_be_told = leave_and_add
    open_gate(gate)
    group.result()
    assert states.count("done") == 1
    assert group._group.subscriptions[0].empty


def test_a_group_whose_members_have_ended_is_running_until_it_is_done(pool, gate):
    group = ProgressGroup([pool.submit(jobs.step_until, gate)])
    with group._group._done:
        open_gate(gate)
        until(lambda: group._group._ended)
        assert not group.done()
        assert group.state["status"] == "running"
        assert group.state["done"] == 1
    group.result()
    assert group.state["status"] == "done"


class InterruptsWhenToldOf:
    def add_cancelled(self, future):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_a_member_is_cancelled_loses_it_to_no_group(local_pool, gate):
    for _ in range(8):
        local_pool.submit(jobs.wait_for, gate)
    member = local_pool.submit(jobs.add, 1)
    list.append(member._waiters, InterruptsWhenToldOf())
    group = ProgressGroup([member])
    with pytest.raises(KeyboardInterrupt):
        member.cancel()
    assert group.done()
    open_gate(gate)


def test_a_signal_handler_may_cancel_the_last_member_while_the_group_is_waited_for(local_pool, gate):
    for _ in range(8):
        local_pool.submit(jobs.wait_for, gate)
    group = ProgressGroup([local_pool.submit(jobs.add, 1)])
    with group._group._done:  # as in its waiting
        assert group.futures[0].cancel()
    assert group.done()
    open_gate(gate)


def test_the_bar_of_a_group_of_nothing_is_closed():
    closed = []

    class Bar(tqdm.tqdm):
        def close(self):
            closed.append(self.postfix)
            super().close()

    ProgressGroup([]).add_tqdm_callback(Bar, {"file": io.StringIO()})
    assert closed[0] == ""


def test_a_member_does_not_keep_its_group(pool, gate):
    futures = [pool.submit(jobs.step_until, gate), pool.submit(jobs.add, 1)]
    group = weakref.ref(ProgressGroup(futures))
    gc.collect()
    assert group() is None
    open_gate(gate)


def test_awaiting_a_group_delivers_its_members_wherever_their_callbacks_were_added(pool):
    states = []

    def add():
        futures[0].add_progress_callback(lambda old, new: states.append((threading.get_ident(), new["n"])))

    async def main():
        group = ProgressGroup(futures)
        await group
        assert not group._group._waiters
        assert all(future._task.loop_poller is None for future in futures)

    futures = [pool.submit(jobs.count_slowly, 40, 0.01) for _ in range(2)]
    add()  # here, and not where it is awaited
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    assert len(states) > 2
    assert {ident for ident, _ in states} == {thread.ident}


def test_a_timeout_is_kept_between_sync_tasks():
    with SyncProgressExecutor() as executor:
        futures = [executor.submit(jobs.count_slowly, 10, 0.01) for _ in range(5)]
        group = ProgressGroup(futures)
        with pytest.raises(TimeoutError):
            group.result(timeout=0.05)
        assert not group.done()
        assert len(concurrent.futures.wait(futures, timeout=0.05).not_done) > 0
        assert group.result() == [10] * 5


def test_the_clock_of_a_group_starts_with_its_first_member(pool, gate, monkeypatch):
    blockers = [pool.submit(jobs.wait_for, gate) for _ in range(4)]
    group = ProgressGroup([pool.submit(jobs.count_slowly, 20, 0.02), pool.submit(jobs.count_slowly, 20, 0.02)])
    bars = []
    group.add_tqdm_callback(lambda **kwargs: bars.append(tqdm.tqdm(**kwargs)) or bars[0], {"file": io.StringIO()})
    now = tqdm.std.time
    for _ in range(3):
        with pytest.raises(TimeoutError):
            group.result(timeout=0.11)
    assert bars[0].format_dict["elapsed"] == 0
    before = now()
    open_gate(gate)
    group.result()
    assert 0.2 < bars[0].format_dict["elapsed"] <= now() - before
    assert [blocker.result() for blocker in blockers] == ["waited"] * 4
