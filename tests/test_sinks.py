"""Sinks of a user's own, `executor.poll()`, and whose waiting delivers to whom."""

import asyncio
import concurrent.futures
import logging
import threading
import time

import pytest

from progress_executor import ProgressGroup, Sink, SyncProgressExecutor, View
from progress_executor._monitor import Subscription

from . import jobs
from .conftest import DEADLINE, open_gate, until
from .test_callbacks import Aside


class Recorder(Sink):
    """Notes what it is told, and in which thread."""

    def __init__(self):
        self.calls = []
        self.threads = set()

    def _note(self, *call):
        self.calls.append(call)
        self.threads.add(threading.get_ident())

    def update(self, view):
        self._note("update", view)

    def message(self, kind, payload):
        self._note(kind, payload)

    def close(self, view):
        self._note("close", view)

    def named(self, name):
        return [call[1] for call in self.calls if call[0] == name]


def recorded(watched):
    sink = Recorder()
    watched.add_sink(sink)
    return sink


def test_a_sink_is_told_views_messages_and_one_close(executor):
    before = time.time()
    future = executor.submit(jobs.say, ["one", "two"])
    sink = recorded(future)
    future.result()
    assert [call[0] for call in sink.calls if call[0] != "update"] == ["log", "log", "close"]
    assert sink.named("log") == ["one", "two"]
    (last,) = sink.named("close")
    assert (last.n, last.total, last.status, last.paused, last.counts) == (2, None, "done", 0, None)
    assert before - 1 < last.began <= last.ended < time.time() + 1
    assert last.state == future.state


def test_a_view_is_a_snapshot_that_changes_no_more(pool, gate):
    future = pool.submit(jobs.step_until, gate)
    sink = recorded(future)
    until(lambda: pool.poll() or len({view.n for view in sink.named("update")}) > 2)
    views = sink.named("update")
    assert all(type(view) is View for view in views)
    assert [view.n for view in views] == sorted(view.n for view in views)
    with pytest.raises(AttributeError):
        views[0].n = 7
    open_gate(gate)
    future.result()


def test_a_groups_view_counts_its_members(pool):
    group = ProgressGroup([pool.submit(jobs.count, 3) for _ in range(3)])
    sink = recorded(group)
    group.result()
    (last,) = sink.named("close")
    assert (last.n, last.total, last.status) == (9, 9, "done")
    assert last.counts == {"pending": 0, "running": 0, "done": 3, "failed": 0, "cancelled": 0}
    assert last.state == group.state
    assert last.described() == "3 done"


def test_a_sink_that_raises_is_logged_and_harms_nobody(executor, caplog):
    class Bad(Sink):
        def update(self, view):
            raise LookupError

        message = close = update

    future = executor.submit(jobs.say, ["one"])
    future.add_sink(Bad())
    sink = recorded(future)
    with caplog.at_level(logging.ERROR, "progress_executor"):
        future.result()
    assert sink.named("log") == ["one"]
    assert len(sink.named("close")) == 1
    assert caplog.records


def test_a_sink_is_removed_by_identity(executor):
    class Alike(Recorder):
        def __eq__(self, other):
            return True

        __hash__ = None

    future = executor.submit(jobs.count, 3)
    first, second = Alike(), Alike()
    future.add_sink(first)
    future.add_sink(second)
    future.remove_sink(second)
    with pytest.raises(ValueError, match="not a sink"):
        future.remove_sink(second)
    future.result()
    assert first.named("close")
    assert not second.calls
    with pytest.raises(ValueError, match="not a sink"):
        future.remove_sink(first)


def test_sinks_that_a_signal_handler_changes_in_between_are_known(pool):
    first, second = Recorder(), Recorder()

    class Interrupted(dict):
        def pop(self, *args):
            found = super().pop(*args)
            if args[0] == id(first) and id(second) not in self:
                subscription.add(second)
            return found

    future = pool.submit(jobs.count, 3)
    subscription = Subscription.of(future._task)
    subscription._sinks = Interrupted()
    future.add_sink(first)
    future.remove_sink(first)
    future.result()
    assert not first.calls
    assert second.named("close")


def test_a_groups_callback_is_first_told_that_all_were_pending(pool):
    group = ProgressGroup([pool.submit(jobs.count, 3) for _ in range(3)])
    states = []
    group.add_progress_callback(lambda old, new: states.append(old))
    group.result()
    pending = {
        "n": 0,
        "total": None,
        "status": "pending",
        "pending": 3,
        "running": 0,
        "done": 0,
        "failed": 0,
        "cancelled": 0,
    }
    assert states[0] == pending


def test_what_is_no_sink_is_refused(executor):
    future = executor.submit(jobs.count, 3)
    with pytest.raises(TypeError, match="must be a Sink"):
        future.add_sink(print)
    future.result()


def test_a_sink_that_is_idle_is_told_the_end_and_messages(executor):
    class Idle(Recorder):
        idle = True

    future = executor.submit(jobs.say, ["one"])
    sink = Idle()
    future.add_sink(sink)
    future.result()
    assert [call[0] for call in sink.calls if call[0] != "update"] == ["log", "close"]


def test_a_sink_without_messages_makes_no_task_wait(pool):
    class Silent(Sink):
        pass

    future = pool.submit(jobs.say_numbers, 2000, 100)
    future.add_sink(Silent())
    assert future.result() < DEADLINE / 10


# Whose waiting delivers


def test_poll_delivers_to_its_own_thread_and_never_blocks(pool, gate):
    future = pool.submit(jobs.step_until, gate)
    sink = recorded(future)
    until(lambda: pool.poll() or sink.named("update"))
    assert sink.threads == {threading.get_ident()}
    told = len(sink.calls)
    assert Aside(pool.poll).value is None
    assert len(sink.calls) == told
    open_gate(gate)
    until(lambda: pool.poll() or sink.named("close"))


def test_a_poll_takes_less_than_a_millisecond(pool, gate):
    futures = [pool.submit(jobs.step_until, gate) for _ in range(2)]
    for future in futures:
        recorded(future)
    pool.poll()
    best = DEADLINE
    for _ in range(20):
        began = time.perf_counter()
        pool.poll()
        best = min(best, time.perf_counter() - began)
    open_gate(gate)
    assert best < 0.001


def test_a_poll_runs_no_task_in_the_calling_thread():
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.count, 3)
        executor.poll()
        assert future.state["status"] == "pending"


def test_each_thread_is_told_what_it_has_added(pool, gate):
    future, other = pool.submit(jobs.step_until, gate), pool.submit(jobs.add, 1)
    mine = recorded(future)
    theirs, waits = [], threading.Event()

    def add_and_wait():
        theirs.append(recorded(future))
        waits.wait(DEADLINE)
        until(lambda: pool.poll() or theirs[0].named("update"))

    thread = threading.Thread(target=add_and_wait)
    thread.start()
    until(lambda: theirs)
    until(lambda: pool.poll() or mine.named("update"))
    other.result()
    assert not theirs[0].calls
    waits.set()
    thread.join()
    assert theirs[0].threads == {thread.ident}
    assert mine.threads == {threading.get_ident()}
    open_gate(gate)
    future.result()
    assert mine.named("close")
    assert theirs[0].named("close")


def test_what_a_thread_that_has_ended_added_is_told_by_who_waits(pool, gate):
    future, other = pool.submit(jobs.step_until, gate), pool.submit(jobs.add, 1)
    sinks = []
    assert Aside(lambda: sinks.append(recorded(future))).value is None
    other.result()
    until(lambda: pool.poll() or sinks[0].named("update"))
    open_gate(gate)
    future.result()


@pytest.mark.parametrize("wait", [concurrent.futures.wait, lambda futures: list(concurrent.futures.as_completed(futures))])
def test_who_waits_for_what_is_done_is_told_its_end(pool, wait):
    futures = [pool.submit(jobs.count, 3) for _ in range(3)]
    until(lambda: all(future.done() for future in futures))
    sinks = [recorded(future) for future in futures]
    wait(futures)
    assert [len(sink.named("close")) for sink in sinks] == [1, 1, 1]


def test_a_loop_that_awaits_tells_also_what_other_threads_added(pool, gate):
    future = pool.submit(jobs.step_until, gate)
    sinks = []
    assert Aside(lambda: sinks.append(recorded(future))).value is None

    async def main():
        task = asyncio.create_task(future.check_for_progress())
        while not sinks[0].named("update"):
            await asyncio.sleep(0.01)
        open_gate(gate)
        await task

    asyncio.run(main())
    assert sinks[0].named("close")
    assert sinks[0].threads == {threading.get_ident()}
