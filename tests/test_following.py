"""Following a future or a group, in a `for` loop and in an `async for` loop, on every executor."""

import asyncio
import contextlib
import gc
import itertools
import math
import os
import signal
import sys
import threading
import time
import weakref

import pytest

from progress_executor import ProgressGroup, SyncProgressExecutor, ThreadPoolProgressExecutor, _following
from progress_executor._executors.sync import SyncTask
from progress_executor._monitor import _loop_pollers
from progress_executor._tasks import Task

from . import jobs
from .conftest import DEADLINE, open_gate, until
from .test_asyncio import until_async
from .test_futures import watch

FAR = 1000
"""An interval that no test waits for."""
FORMS = ["for", "async for"]
form = pytest.mark.parametrize("form", FORMS)
of = pytest.mark.parametrize("of", [lambda future: future, lambda future: ProgressGroup([future])], ids=["future", "group"])


def follow(followed, form, interval=0.001, body=lambda state: None):
    """The states of all turns; `body(state)` is the loop's."""
    states = []

    def turn(state):
        states.append(state)
        body(state)

    async def main():
        async for state in followed.states(interval):
            turn(state)

    if form == "async for":
        asyncio.run(main())
    else:
        for state in followed.states(interval):
            turn(state)
    return states


class Follower(threading.Thread):
    """Follows in a thread of its own."""

    def __init__(self, followed, form, interval=0.001, body=lambda state: None):
        super().__init__(daemon=True)
        self.states = []
        self._follow = lambda: follow(followed, form, interval, lambda state: (self.states.append(state), body(state)))
        self.start()

    def run(self):
        self._follow()

    def end(self):
        self.join(DEADLINE)
        assert not self.is_alive()
        return self.states


def without_repeats(states):
    return [key for key, _ in itertools.groupby(states)]


# Turns


@of
@form
def test_each_turn_is_another_state_and_the_final_one_comes_last_and_once(executor, form, of):
    followed = of(executor.submit(jobs.count_slowly, 20, 0.005))
    states = follow(followed, form)
    assert states[0]["status"] in ("pending", "running")
    assert (states[-1]["n"], states[-1]["total"], states[-1]["status"]) == (20, 20, "done")
    assert [state["status"] for state in states].count("done") == 1
    assert states == without_repeats(states)
    assert [state["n"] for state in states] == sorted(state["n"] for state in states)
    assert followed.done()


@form
def test_progress_is_seen_while_the_task_runs(pool, gate, form):
    future = pool.submit(jobs.step_on, gate)
    seen = set()
    follow(future, form, body=lambda state: seen.add(state["n"]) or (len(seen) > 2 and open_gate(gate)))
    assert future.state["status"] == "done"


@of
@form
def test_the_first_turn_is_the_present_state_and_comes_at_once(pool, gate, form, of):
    future = pool.submit(jobs.report_and_wait, 7, 20, "here", gate)
    until(lambda: future.state["n"] == 7)
    followed = of(future)
    follower = Follower(followed, form, FAR)
    until(lambda: follower.states)
    assert follower.states == [followed.state]
    open_gate(gate)
    assert len(follower.end()) == 2


@of
@form
def test_the_final_state_comes_when_the_task_ends_and_not_an_interval_later(pool, gate, form, of):
    future = pool.submit(jobs.step_on, gate)
    follower = Follower(of(future), form, FAR)
    until(lambda: follower.states)
    open_gate(gate)
    assert follower.end()[-1]["status"] == "done"
    assert len(follower.states) == 2


@of
@form
def test_what_ends_while_the_body_runs_is_told_in_the_next_turn_at_once(pool, gate, form, of):
    future = pool.submit(jobs.step_on, gate)
    follower = Follower(of(future), form, FAR, lambda state: (open_gate(gate), until(future.done)))
    assert [state["status"] for state in follower.end()][1:] == ["done"]


@form
def test_a_turn_waits_until_the_state_is_another_one(pool, gate, form, monkeypatch):
    future = pool.submit(jobs.report_and_wait, 7, 20, "here", gate)
    until(lambda: future.state["n"] == 7)
    looks = []
    monkeypatch.setattr(Task, "snapshot", lambda self, snapshot=Task.snapshot: (looks.append(self), snapshot(self))[1])
    follower = Follower(future, form, body=lambda state: state.update(n=-1))  # it is the follower's own
    until(lambda: len(looks) > 10)
    assert len(follower.states) == 1
    open_gate(gate)
    follower.end()
    assert len(follower.states) == 2


@form
def test_a_turn_waits_for_the_interval(pool, gate, form, monkeypatch):
    future = pool.submit(jobs.step_on, gate)
    until(lambda: future.state["n"])
    looks, moments = [], []  # when it looked; its body may have to wait for a processor

    def look():
        looks.append(time.monotonic())
        return looks[-1]

    monkeypatch.setattr(_following, "monotonic", look)
    follower = Follower(future, form, 0.05, lambda state: moments.append(looks[-1]))
    until(lambda: len(moments) > 4)
    open_gate(gate)
    follower.end()
    assert min(later - earlier for earlier, later in itertools.pairwise(moments[:-1])) >= 0.05


@form
def test_a_slow_follower_sees_the_newest_state_and_no_backlog(pool, gate, form):
    future = pool.submit(jobs.step_on, gate)
    seen = []

    def body(state):
        seen.append((state["n"], future.state["n"]))
        if len(seen) == 3:
            open_gate(gate)
        elif len(seen) < 3:
            until(lambda: future.state["n"] > seen[-1][1] + 20)

    follow(future, form, body=body)
    assert all(given > before + 20 for (_, before), (given, _) in itertools.pairwise(seen[:3]))


@pytest.mark.parametrize(
    ("job", "args", "end"),
    [(jobs.count_then_fail, (4,), (4, "failed")), (jobs.add, (1,), (0, "done")), (jobs.fail, (), (0, "failed"))],
)
@form
def test_a_failure_ends_the_states_and_is_not_raised(executor, form, job, args, end):
    future = executor.submit(job, *args)
    last = follow(future, form)[-1]
    assert (last["n"], last["status"]) == end
    assert (future.exception() is None) == (end[1] == "done")


@of
@form
def test_cancellation_ends_the_states_and_is_not_raised(pool, gate, form, of):
    future = pool.submit(jobs.step_on, gate)
    states = follow(of(future), form, body=lambda state: state["n"] and future.cancel())
    assert states[-1]["status"] == "cancelled"
    assert [state["status"] for state in states].count("cancelled") == 1
    assert future.cancelled()


@form
def test_a_pending_task_that_is_cancelled_ends_the_states(executor, gate, form):
    blockers = [executor.submit(jobs.wait_for, gate) for _ in range(5)]
    future = executor.submit(jobs.count, 3)
    states = follow(future, form, FAR, lambda state: future.cancel())
    assert [state["status"] for state in states] == ["pending", "cancelled"]
    open_gate(gate)
    assert [blocker.result() for blocker in blockers] == ["waited"] * 5


@of
@form
def test_what_is_done_has_one_turn(executor, form, of):
    followed = of(executor.submit(jobs.count, 3))
    followed.result()
    assert follow(followed, form) == [followed.state]


def test_after_the_end_there_is_nothing_more(executor):
    states = executor.submit(jobs.count, 3).states(0.001)
    assert list(states)
    assert list(states) == []
    assert next(states, None) is None

    async def main():
        return [state async for state in states]

    assert asyncio.run(main()) == []


@form
def test_a_final_state_that_equals_the_last_one_is_given_all_the_same(pool, gate, form):
    future = pool.submit(jobs.report_and_wait, 3, 3, "done", gate)
    until(lambda: future.state["n"] == 3)
    states = follow(future, form, body=lambda state: open_gate(gate))
    assert states == [{"n": 3, "total": 3, "status": "done"}] * 2


@of
@form
def test_a_final_state_that_is_there_before_its_future_is_done_is_given_once_it_is(local_pool, gate, form, of):
    future = local_pool.submit(jobs.step_on, gate)
    until(lambda: future.state["n"])
    follower = Follower(of(future), form, body=lambda state: future._task.finish("done"))
    until(lambda: follower.states)
    until(lambda: future.state["status"] == "done")
    assert [state["status"] for state in follower.states].count("done") == 0
    open_gate(gate)
    assert [state["status"] for state in follower.end()].count("done") == 1


def test_many_followers_in_threads_and_loops_all_come_to_the_end(pool, gate):
    future = pool.submit(jobs.step_on, gate)
    group = ProgressGroup([future])
    of_loops = []

    async def one(followed):
        of_loops.append([])
        mine = of_loops[-1]
        async for state in followed.states(0.001):
            mine.append(state)

    async def main():
        await asyncio.gather(*(one(followed) for followed in (future, group) for _ in range(3)))

    loops = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(2)]
    for loop in loops:
        loop.start()
    followers = [Follower(followed, "for") for followed in (future, group) for _ in range(3)]
    until(lambda: all(len(states) > 2 for states in (*of_loops, *(follower.states for follower in followers))))
    open_gate(gate)
    for loop in loops:
        loop.join()
    for states in (*of_loops, *(follower.end() for follower in followers)):
        assert [state["status"] for state in states].count("done") == 1
        assert states[-1]["status"] == "done"
        assert states[-1]["n"] == future.state["n"]
    assert len(of_loops) == 12


@form
def test_a_group_is_followed_with_its_counts(executor, form):
    group = ProgressGroup(executor.submit(job, *args) for job, *args in [(jobs.count, 3), (jobs.count_then_fail, 4)])
    states = follow(group, form)
    assert states[-1] == group.state
    assert (states[-1]["n"], states[-1]["done"], states[-1]["failed"], states[-1]["status"]) == (7, 1, 1, "failed")
    assert [state["status"] for state in states].count("failed") == 1


@form
def test_a_group_of_nothing_has_one_turn(form):
    assert [state["status"] for state in follow(ProgressGroup([]), form)] == ["done"]


@pytest.mark.parametrize("interval", [0, -1, math.nan, math.inf])
@of
def test_an_interval_that_is_not_positive_and_finite_is_an_error(of, interval):
    with SyncProgressExecutor() as executor:
        followed = of(executor.submit(jobs.count, 3))
        with pytest.raises(ValueError, match="interval must be a positive number of seconds"):
            followed.states(interval)


@pytest.mark.parametrize("interval", ["0.1", None, 1j])
def test_an_interval_that_is_no_number_is_an_error(interval):
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.count, 3)
        for method in (future.states, future.check_for_progress):
            with pytest.raises(TypeError):
                method(interval)


# Lazy tasks


@form
def test_waiting_for_a_turn_runs_a_lazy_task_and_the_first_turn_does_not(form):
    with SyncProgressExecutor() as executor:
        ran = []
        future = executor.submit(ran.append, 1)
        before = []
        states = follow(future, form, FAR, lambda state: before.append(list(ran)))
        assert [state["status"] for state in states] == ["pending", "done"]
        assert before == [[], [1]]


@form
def test_a_group_of_lazy_tasks_has_a_turn_after_each_whose_time_has_come(form):
    with SyncProgressExecutor() as executor:
        group = ProgressGroup(executor.submit(time.sleep, 0.01) for _ in range(4))
        assert [state["done"] for state in follow(group, form)] == [0, 1, 2, 3, 4]
        group = ProgressGroup(executor.submit(jobs.add, n) for n in range(4))
        assert [state["done"] for state in follow(group, form, FAR)] == [0, 4]


def test_the_loop_does_what_fell_due_between_two_lazy_tasks():
    async def main():
        order = []
        loop = asyncio.get_running_loop()

        def work(n):
            order.append(n)
            loop.call_at(loop.time(), order.append, "due")

        with SyncProgressExecutor() as executor:
            group = ProgressGroup(executor.submit(work, n) for n in range(2))
            async for _ in group.states(FAR):
                pass
        assert order == [0, "due", 1, "due"]

    asyncio.run(main())


@form
def test_a_lazy_task_that_another_thread_runs_is_seen_in_its_midst(gate, form):
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.step_on, gate)
        runner = threading.Thread(target=future.result)
        runner.start()
        until(lambda: future.state["n"])
        states = follow(future, form, body=lambda state: open_gate(gate) if state["n"] > 20 else None)
        runner.join()
        assert len({state["n"] for state in states}) > 2


def test_a_lazy_task_cannot_follow_itself():
    with SyncProgressExecutor() as executor:
        future = executor.submit(lambda: list(future.states()))
        with pytest.raises(RuntimeError, match="cannot wait for itself"):
            future.result()


# Delivery


@of
@form
def test_callbacks_are_called_while_a_turn_is_waited_for_and_have_the_final_state_before_it_is_given(executor, form, of):
    followed = of(executor.submit(jobs.count_slowly, 30, 0.01))
    told, threads, before = watch(followed), set(), []
    followed.add_progress_callback(lambda old, new: threads.add(threading.get_ident()))
    states = follow(followed, form, FAR, lambda state: before.append(len(told)))
    assert len(told) > 2
    assert told[-1][1] == states[-1]
    assert before[-1] == len(told)
    assert threads == {threading.get_ident()}


@form
def test_the_callbacks_of_a_groups_members_are_called(executor, form):
    futures = [executor.submit(jobs.count_slowly, 30, 0.01) for _ in range(2)]
    told = [watch(future) for future in futures]
    follow(ProgressGroup(futures), form)
    assert all(len(states) > 2 and states[-1][1]["status"] == "done" for states in told)


@of
@form
def test_who_follows_delivers_callbacks_that_another_thread_has_added(pool, gate, form, of):
    future = pool.submit(jobs.step_on, gate)
    followed = of(future)
    told, tellers = [watch(future), watch(followed)], set()
    followed.add_progress_callback(lambda old, new: tellers.add(threading.current_thread()))
    follower = Follower(followed, form)
    until(lambda: all(len(states) > 2 for states in told))
    open_gate(gate)
    follower.end()
    assert all(states[-1][1]["status"] == "done" for states in told)
    assert tellers == {follower}


@form
def test_who_follows_a_group_of_lazy_tasks_delivers_callbacks_that_another_thread_has_added_while_they_run(form):
    with SyncProgressExecutor() as executor:
        group = ProgressGroup([executor.submit(jobs.count_slowly, 40, 0.01)])
        told, added, over = [], threading.Event(), threading.Event()

        def add():
            group.add_progress_callback(lambda old, new: told.append((threading.get_ident(), new["n"])))
            added.set()
            over.wait(DEADLINE)

        adding = threading.Thread(target=add)
        adding.start()
        added.wait(DEADLINE)
        follow(group, form)
        over.set()
        adding.join()
        assert {ident for ident, _ in told} == {threading.get_ident()}
        assert len({n for _, n in told} - {0, 40}) > 1


@form
def test_who_is_never_early_enough_to_wait_delivers_all_the_same(pool, gate, form):
    future = pool.submit(jobs.step_on, gate)
    told = watch(future)

    def body(state):
        time.sleep(0.005)
        if len(told) > 2:
            open_gate(gate)

    follow(future, form, body=body)
    assert told[-1][1]["status"] == "done"


def test_the_loop_goes_on_beside_a_follower_whose_turns_are_always_due(pool, gate):
    async def main():
        future = pool.submit(jobs.step_on, gate)
        asyncio.get_running_loop().call_later(0.02, open_gate, gate)
        async for _ in future.states(0.001):
            time.sleep(0.005)

    asyncio.run(main())


@form
def test_a_long_interval_does_not_keep_callbacks_waiting(pool, gate, form):
    future = pool.submit(jobs.step_on, gate)
    told = watch(future)
    future.add_progress_callback(lambda old, new: open_gate(gate) if len(told) > 2 else None)
    assert len(follow(future, form, FAR)) == 2


def test_a_follower_leaves_the_interval_of_who_awaits_as_it_is(pool, gate):
    async def main():
        future = pool.submit(jobs.step_on, gate)
        told = watch(future)
        waiting = asyncio.create_task(future.check_for_progress(FAR))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        turns = 0
        async for _ in future.states(0.01):
            turns += 1
            if turns == 20:
                open_gate(gate)
        await waiting
        assert len(told) <= 3  # first and last, and perhaps one that has seen it pending

    asyncio.run(main())


@of
def test_a_progress_callback_cannot_follow_what_it_watches(executor, of):
    followed = of(executor.submit(jobs.count_slowly, 20, 0.01))
    errors = []

    def callback(old, new):
        states = followed.states()
        try:
            errors.append(next(states)["status"])
        except RuntimeError as error:
            errors.append(str(error))

    followed.add_progress_callback(callback)
    follow(followed, "for")
    assert errors[0] == "a progress callback cannot follow what it watches"
    assert errors[-1] == "done"  # there is nothing to wait for


def test_a_progress_callback_may_follow_another_future(executor):
    first, second = executor.submit(jobs.count_slowly, 10, 0.01), executor.submit(jobs.count, 3)
    ends = []
    first.add_progress_callback(lambda old, new: ends.append(list(second.states(0.001))[-1]["n"]))
    follow(first, "for")
    assert set(ends) == {3}


# Leaving


def assert_nothing_is_left(future, group):
    assert not future.cancel_requested()
    assert not future._done_callbacks
    assert [type(waiter).__name__ for waiter in future._waiters] == ["_Waiter"]  # the group's
    assert not group._group._waiters
    assert future._task.loop_poller is None
    assert group._group.loop_poller is None
    assert not future._condition._waiters
    assert not group._group._done._waiters


@contextlib.contextmanager
def running(pool, gate):
    """A future, and a group of it, whose task goes on until the end of the block, which leaves nothing of its own there."""
    future = pool.submit(jobs.step_on, gate)
    group = ProgressGroup([future])
    until(lambda: future.state["n"])
    yield future, group
    assert_nothing_is_left(future, group)
    open_gate(gate)
    assert future.result() > 0


@pytest.mark.parametrize("how", ["break", "raise"])
def test_leaving_a_for_loop_leaves_nothing_behind(pool, gate, how):
    with running(pool, gate) as both:
        for followed in both:
            references, iterators = sys.getrefcount(followed), []
            with contextlib.suppress(ZeroDivisionError):
                for turn, _ in enumerate(iterators.append(states := followed.states(0.001)) or states):
                    if turn == 2:
                        if how == "break":
                            break
                        raise ZeroDivisionError
            gone = weakref.ref(iterators.pop())
            del states
            assert gone() is None
            assert sys.getrefcount(followed) == references


@pytest.mark.parametrize("how", ["break", "raise", "cancel"])
def test_leaving_an_async_for_loop_leaves_nothing_behind(pool, gate, how):
    async def turns(followed, iterators):
        count = 0
        async for _ in iterators[0]():
            count += 1
            if count == 3:
                if how == "break":
                    break
                if how == "raise":
                    raise ZeroDivisionError
                iterators.append("third")

    async def main(both):
        loop = asyncio.get_running_loop()
        for followed in both:
            references, notes, made = sys.getrefcount(followed), [], []

            def states(followed=followed, made=made):
                made.append(weakref.ref(iterator := followed.states(0.001)))
                return iterator

            notes.append(states)
            task = asyncio.create_task(turns(followed, notes))
            if how == "cancel":
                await until_async(lambda notes=notes: len(notes) > 1)
                task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() == (how == "cancel")
            if how == "raise":
                assert isinstance(task.exception(), ZeroDivisionError)
            del task, states
            notes.clear()
            await asyncio.sleep(0)
            assert made[0]() is None
            gc.collect()  # from 3.14 on asyncio.wait leaves a cycle when it is cancelled
            assert sys.getrefcount(followed) == references
            assert loop not in _loop_pollers

    with running(pool, gate) as both:
        asyncio.run(main(both))


def test_a_task_that_is_cancelled_while_it_waits_for_a_turn_leaves_nothing_behind(pool, gate):
    async def main(followed):
        states = followed.states(FAR)
        await anext(states)
        task = asyncio.create_task(anext(states))
        await until_async(lambda: asyncio.get_running_loop() in _loop_pollers)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.get_running_loop() not in _loop_pollers

    with running(pool, gate) as both:
        for followed in both:
            asyncio.run(main(followed))


def test_ctrl_c_while_a_for_loop_waits_leaves_nothing_behind(pool, gate):
    with running(pool, gate) as both:
        for followed in both:
            states = followed.states(FAR)
            next(states)
            waiting = followed._condition if followed is both[0] else followed._group._done

            def interrupt(waiting=waiting):
                until(lambda: waiting._waiters)
                os.kill(os.getpid(), signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                next(states)
            thread.join()


def test_who_has_left_does_not_keep_others_from_delivering(gate):
    with ThreadPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.step_on, gate)
        told = watch(future)

        async def main():
            async for state in future.states(0.001):
                if state["n"] > 3:
                    break
            before = len(told)
            waiting = threading.Thread(target=future.result)
            waiting.start()
            until(lambda: len(told) > before)  # the loop stands still, and is not asked to deliver
            open_gate(gate)
            waiting.join()

        asyncio.run(main())
        assert told[-1][1]["status"] == "done"


def test_a_lazy_task_that_many_follow_runs_once(gate, monkeypatch):
    ran = []
    monkeypatch.setattr(SyncTask, "run", lambda self, *args, run=SyncTask.run: (ran.append(self), run(self, *args))[1])
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.step_on, gate)
        followers = [Follower(future, form) for form in FORMS * 2]
        until(lambda: future.state["n"])
        open_gate(gate)
        for follower in followers:
            assert follower.end()[-1]["status"] == "done"
    assert len(ran) == 1
