"""Whatever happens to tasks, in whichever order: each future ends once, in the state that its task had deserved.

A state machine submits, cancels, steps, ends and kills puppets, tasks that do what they are told through a socket, and knows
what must become of each; and thousands of tasks are cancelled at random.
"""

import concurrent.futures
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import BrokenExecutor, CancelledError
from multiprocessing.connection import Client, Listener
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from progress_executor import IMPLEMENTATION, SyncProgressExecutor, ThreadPoolProgressExecutor

from . import jobs
from .conftest import DEADLINE, KINDS, LOCAL, POOLS, START_METHODS, make_executor, open_gate, until

WORKERS = 2


def puppet(address, number, progress):
    """Does what it is told: ("step", n), ("return", value), ("fail",), ("swallow",) and ("die",)."""
    with Client(address) as orders:
        orders.send(number)
        while True:
            order, *arguments = orders.recv()
            if order == "return":
                return arguments[0]
            if order == "fail":
                raise ValueError(number)
            if order == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                progress.update(arguments[0])
            except BaseException:
                orders.send("cancelled")
                if order == "swallow":
                    return "swallowed"
                raise
            orders.send("counted")


class Life:
    """A task as the model knows it."""

    def __init__(self, number):
        self.number = number
        self.n = 0
        self.asked = False  # to stop
        self.end = None  # "cancelled", ValueError, BrokenExecutor or ("value", ...)
        self.told = []

    def __repr__(self):
        return f"task {self.number}"


class Pool(RuleBasedStateMachine):
    kind = "thread"

    def __init__(self):
        super().__init__()
        self.executor = make_executor(self.kind, WORKERS)
        self.listener = Listener(family="AF_UNIX")
        self.lives = []
        self.connected = {}
        self.shut = self.broken = False

    tasks = Bundle("tasks")

    @precondition(lambda self: not self.shut and not self.broken)
    @rule(target=tasks)
    def submit(self):
        life = Life(len(self.lives))
        life.future = self.executor.submit(puppet, self.listener.address, life.number)
        life.future.add_progress_callback(lambda old, new: life.told.append(new))
        self.lives.append(life)
        self.settle()
        return life

    @precondition(lambda self: self.shut or self.broken)
    @rule()
    def submit_too_late(self):
        with pytest.raises(BrokenExecutor if self.broken else RuntimeError):
            self.executor.submit(jobs.add, 1)

    @rule(life=tasks, n=st.integers(1, 100), order=st.sampled_from(["step", "step", "swallow"]))
    def step(self, life, n, order):
        if life not in self.running():
            return
        orders = self.connected[life.number]
        orders.send((order, n))
        life.n += n
        if life.asked:
            assert orders.recv() == "cancelled"
            self.ended(life, ("value", "swallowed") if order == "swallow" else "cancelled")
        else:
            assert orders.recv() == "counted"
            assert life.future.state == {"n": life.n, "total": None, "status": "running"}

    @rule(life=tasks, value=st.integers())
    def finish(self, life, value):
        if life in self.running():
            self.connected[life.number].send(("return", value))
            self.ended(life, ("value", value))

    @rule(life=tasks)
    def fail(self, life):
        if life in self.running():
            self.connected[life.number].send(("fail",))
            self.ended(life, ValueError)

    @rule(life=tasks)
    def cancel(self, life):
        before = life.end
        running = life in self.running()
        assert life.future.cancel() == (before in (None, "cancelled"))
        assert before is not None or life.future.cancel_requested()
        if before is None and running:
            life.asked = True
            assert life.future.running()
        elif before is None:  # at once, or when a worker comes across it in the call queue: it is never entered
            assert life.future.cancelled() or self.kind != "thread"
            life.end = "cancelled"

    @precondition(lambda self: self.kind != "thread")
    @rule(life=tasks)
    def die(self, life):
        if life not in self.running():
            return
        undone = [other for other in self.lives if not other.future.done()]
        self.connected[life.number].send(("die",))
        self.broken = True
        concurrent.futures.wait([other.future for other in undone], timeout=30)
        for other in undone:  # what was cancelled in the call queue, either a worker came across it, or none ever will
            if other.end is None or not other.future.cancelled():
                other.end = BrokenExecutor

    # After the first, what is left depends on the moment, and hypothesis wants the same rules to be there each time.
    @precondition(lambda self: self.shut or any(life.end is None for life in self.lives))
    @rule(cancel_futures=st.booleans())
    def shut_down(self, cancel_futures):
        running = self.running()
        self.executor.shutdown(wait=False, cancel_futures=cancel_futures)
        self.shut = True
        if not cancel_futures:
            return
        for life in self.lives:
            if life.end is None and life not in running:
                assert life.future.cancelled() or self.kind != "thread"  # which may have it in its call queue
                life.end = "cancelled" if life.future.cancelled() else None

    @rule()
    def deliver(self):
        concurrent.futures.wait([life.future for life in self.lives], timeout=0)

    def running(self):
        return [life for life in self.lives if life.end is None][:WORKERS]

    def ended(self, life, end):
        life.end = end
        until(life.future.done)
        self.settle()

    def settle(self):
        """Wait for the tasks that the pool starts now."""
        while not all(life.number in self.connected for life in self.running()):
            connection = self.listener.accept()
            self.connected[connection.recv()] = connection

    @invariant()
    def futures_are_as_they_should_be(self):
        for life in self.lives:
            future = life.future
            if life.end is None:
                assert not future.done()
            elif future.done():
                self.check_end(life)

    def check_end(self, life):
        future, end = life.future, life.end
        assert not future.running()
        status = {"cancelled": "cancelled", ValueError: "failed", BrokenExecutor: "failed"}.get(end, "done")
        assert future.state == {"n": life.n, "total": None, "status": status}
        assert future.cancelled() == (end == "cancelled")
        if end == "cancelled":
            with pytest.raises(CancelledError):
                future.result(0)
        elif status == "done":
            assert future.result(0) == end[1]
        else:
            assert isinstance(future.exception(0), end)

    def teardown(self):
        while running := self.running():
            self.finish(running[0], "at last")
        with self.executor:
            pass
        for connection in self.connected.values():
            connection.close()
        self.listener.close()
        for life in self.lives:
            assert life.future.done()
            self.check_end(life)
            statuses = [state["status"] for state in life.told]
            assert statuses == sorted(statuses, key=["pending", "running", "done", "failed", "cancelled"].index)
            assert life.told[-1] == life.future.state
            assert len(life.told) == 1 or life.told[-2]["status"] in ("pending", "running")
            assert life.number in self.connected or life.end in ("cancelled", BrokenExecutor)


class Forked(Pool):
    kind = "fork"


class Forkserved(Pool):
    kind = "forkserver"


class Spawned(Pool):
    kind = "spawn"


class Sync(RuleBasedStateMachine):
    """The same where a task runs when it is waited for: it is told beforehand what it will do."""

    def __init__(self):
        super().__init__()
        self.executor = SyncProgressExecutor()
        self.lives = []
        self.shut = False

    tasks = Bundle("tasks")

    @precondition(lambda self: not self.shut)
    @rule(target=tasks, steps=st.lists(st.integers(1, 9), max_size=4), how=st.sampled_from(["return", "fail", "swallow"]))
    def submit(self, steps, how):
        life = Life(len(self.lives))

        def work(progress):
            life.ran = True
            for step in steps:
                life.n += step
                try:
                    progress.update(step)
                except BaseException:
                    if how == "swallow":
                        life.end = "value", "swallowed"
                        return "swallowed"
                    life.end = "cancelled"
                    raise
            life.end = ValueError if how == "fail" else ("value", life.n)
            if how == "fail":
                raise ValueError
            return life.n

        life.ran = False
        life.cancel_at = None
        life.future = self.executor.submit(work)
        life.future.add_progress_callback(lambda old, new: self.told(life, new))
        self.lives.append(life)
        return life

    def told(self, life, state):
        life.told.append(state)
        if life.cancel_at == len(life.told):
            life.future.cancel()

    @rule(life=tasks, at=st.integers(1, 5))
    def cancel_from_a_callback(self, life, at):
        life.cancel_at = at

    @rule(life=tasks)
    def cancel(self, life):
        assert life.future.cancel() == (life.end in (None, "cancelled"))
        if life.end is None:
            life.end = "cancelled"

    @rule(life=tasks)
    def collect(self, life):
        concurrent.futures.wait([life.future])
        assert life.future.done()

    @precondition(lambda self: any(life.end is None for life in self.lives))
    @rule(wait=st.booleans(), cancel_futures=st.booleans())
    def shut_down(self, wait, cancel_futures):
        pending = [life for life in self.lives if life.end is None]
        self.executor.shutdown(wait=wait, cancel_futures=cancel_futures)
        self.shut = True
        for life in pending:
            assert life.ran == (wait and not cancel_futures)
            if cancel_futures:
                life.end = "cancelled"

    @precondition(lambda self: self.shut)
    @rule()
    def submit_too_late(self):
        with pytest.raises(RuntimeError):
            self.executor.submit(jobs.add, 1)

    check_end = Pool.check_end

    @invariant()
    def futures_are_as_they_should_be(self):
        for life in self.lives:
            assert life.future.done() == (life.end is not None)
            if life.end is not None:
                self.check_end(life)

    def teardown(self):
        self.executor.shutdown()
        for life in self.lives:
            self.check_end(life)
            assert life.told[-1] == life.future.state
            assert [state["status"] for state in life.told].count(life.told[-1]["status"]) == 1


def live(machine, examples):
    """Run `machine` so often. No example is kept, and each is told apart by its seed: what fails is printed as a program."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("machine", [Pool, Forked, Sync])
def test_each_future_ends_once_as_its_task_did(machine):
    live(machine, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "examples"), [(Pool, 100), (Forked, 100), (Forkserved, 10), (Spawned, 10), (Sync, 100)])
def test_each_future_ends_once_as_its_task_did_in_many_lives(machine, examples):
    live(machine, examples)


STEPS = 300  # of a task that goes on until it is asked to stop: 0.1 s, if nobody asks


@pytest.mark.slow
@pytest.mark.parametrize("kind", POOLS)
def test_of_twenty_thousand_tasks_that_are_cancelled_at_random_none_is_lost(kind):
    """One in ten goes on until it is cancelled while it runs; half of those keep their value all the same."""
    seed, count = IMPLEMENTATION, 20_000  # other cancels in each form
    chance = random.Random(seed)
    until_cancelled = [jobs.step_until_cancelled, jobs.step_until_cancelled_and_return]
    futures, told, asked, ended = [], {}, set(), []
    over = threading.Event()

    def cancel_at_random(seed):
        chance = random.Random(seed)

        def cancel(number):
            if futures[number].cancel():
                asked.add(number)

        while not over.is_set():
            recent = range(max(0, len(futures) - 200), len(futures))
            if recent:
                cancel(chance.choice(recent))
            for number in recent:
                future = futures[number]
                if future.n == STEPS and not future.done() and future.state["n"] > chance.randrange(9):
                    cancel(number)
            time.sleep(chance.random() / 2000)

    cancellers = [threading.Thread(target=cancel_at_random, args=(f"{seed}-{n}",)) for n in range(2)]
    with make_executor(kind, 4) as executor:
        for canceller in cancellers:
            canceller.start()
        for number in range(count):
            job = chance.choice([*[jobs.count] * 17, jobs.count_then_fail, *until_cancelled])
            n = STEPS if job in until_cancelled else chance.randrange(30)
            future = executor.submit(job, n)
            future.add_done_callback(lambda _, number=number: ended.append(number))
            if number % 10 == 0:
                told[number] = []
                future.add_progress_callback(lambda old, new, states=told[number]: states.append(new))
            future.job, future.n = job, n
            futures.append(future)
            if number % 100 == 99:  # cancelled ones are among those that run, and not far from them
                concurrent.futures.wait(futures[-150:-50])
        concurrent.futures.wait(futures)
        over.set()
        for canceller in cancellers:
            canceller.join()
    ends = Counter()
    for number, future in enumerate(futures):
        n, total, status = future.state.values()
        if status == "cancelled":
            assert number in asked
            assert n <= future.n
            with pytest.raises(CancelledError):
                future.result(0)
            if future.job is jobs.step_until_cancelled_and_return:
                assert n == 0  # it was never entered
            ends["cancelled while it ran" if n else "cancelled"] += 1
        elif future.job is jobs.count_then_fail:
            assert isinstance(future.exception(0), ValueError)
            assert (n, total, status) == (future.n, future.n, "failed")
            ends["failed though asked to stop" if number in asked else "failed"] += 1
        else:
            assert (future.result(0), status) == (n, "done")
            assert n == future.n or (future.job is jobs.step_until_cancelled_and_return and number in asked)
            ends["done though asked to stop" if number in asked else "done"] += 1
    assert sorted(ended) == list(range(count))  # the done callbacks, once each
    assert sum(ends.values()) == count
    assert ends["cancelled while it ran"] > count / 100, ends
    assert ends["done though asked to stop"] > count / 100, ends
    assert min(ends["done"], ends["failed"], ends["cancelled"]) > count / 200, ends
    for number, states in told.items():
        assert states[-1] == futures[number].state
        assert [state["status"] in ("done", "failed", "cancelled") for state in states].count(True) == 1


# Cancelled at one moment after the other


class Pickled:
    """An argument that calls `fn` when it is pickled, in the caller, and is unpickled by `unpickle(*arguments)`."""

    def __init__(self, fn=lambda: None, unpickle=bool, arguments=()):
        self.fn = fn
        self.unpickle = unpickle, arguments

    def __reduce__(self):
        self.fn()
        return self.unpickle


def enter(entered, argument, progress):
    """Leaves the file `entered` behind, and notices that it is cancelled."""
    Path(entered).touch()
    progress.update(3)
    return "not noticed"


def assert_never_entered(future, entered):
    with pytest.raises(CancelledError):
        future.result(DEADLINE)
    assert future.state == {"n": 0, "total": None, "status": "cancelled"}
    assert not entered.exists()


@pytest.fixture
def entered(tmp_path):
    return tmp_path / "entered"


@pytest.fixture(params=START_METHODS)
def worker(request):
    """A pool of one process."""
    with make_executor(request.param, 1) as executor:
        yield executor


def test_a_task_that_is_cancelled_while_it_is_pickled_is_never_entered(worker, entered):
    submitted = threading.Event()

    def cancel():
        submitted.wait(DEADLINE)
        assert future.cancel()

    future = worker.submit(enter, str(entered), Pickled(cancel))
    submitted.set()
    assert_never_entered(future, entered)
    assert worker.submit(jobs.count, 3).result() == 3


def test_a_task_that_is_cancelled_between_pickling_and_start_is_never_entered(worker, entered, gate):
    blocker = worker.submit(jobs.step_until, gate)
    until(lambda: blocker.state["n"])
    future = worker.submit(enter, str(entered), None)
    until(lambda: future._task.slot is not None)  # in which it is written for the worker that it is cancelled
    assert future.state["status"] == "pending"
    assert future.cancel()
    assert future.cancel()
    assert not future.done()
    open_gate(gate)
    assert_never_entered(future, entered)


def test_a_task_that_is_cancelled_while_it_is_unpickled_stops_at_its_first_step(worker, entered, gate):
    begun = entered.with_name("begun")
    future = worker.submit(enter, str(entered), Pickled(unpickle=jobs.note_and_wait_for, arguments=(str(begun), gate)))
    until(begun.exists)  # the state says so a moment before
    assert future.cancel()
    assert future.running()
    open_gate(gate)
    with pytest.raises(CancelledError):
        future.result(DEADLINE)
    assert entered.exists()
    assert future.state == {"n": 3, "total": None, "status": "cancelled"}


def give_back(returned, gate, progress):
    """A value that takes its time to be pickled."""
    progress.update(3)
    return Pickled(lambda: (Path(returned).touch(), jobs.wait_for(gate)), str, ("kept",))


def test_a_value_that_is_on_its_way_to_the_caller_is_kept_though_its_task_is_cancelled(worker, tmp_path, gate):
    returned = tmp_path / "returned"
    future = worker.submit(give_back, str(returned), gate)
    until(returned.exists)
    assert future.cancel()
    open_gate(gate)
    assert future.result(DEADLINE) == "kept"
    assert not future.cancel()
    assert future.state == {"n": 3, "total": None, "status": "done"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_has_arrived_is_kept_though_its_task_is_cancelled(kind, gate):
    with make_executor(kind) as executor:
        future = executor.submit(jobs.wait_for, gate)
        set_result = future.set_result

        def cancel_and_set(value):
            assert future.cancel()
            set_result(value)

        future.set_result = cancel_and_set
        open_gate(gate)
        assert future.result(DEADLINE) == "waited"
        assert future.cancel_requested()
        assert not future.cancel()
        assert future.state["status"] == "done"


@pytest.mark.parametrize("kind", [*LOCAL, "forkserver", "spawn"])
def test_cancel_from_many_threads_at_every_moment_ends_in_one_state(kind):
    with make_executor(kind, 4) as executor, ThreadPoolProgressExecutor(4) as cancellers:
        for round_ in range(300):
            futures = [executor.submit(jobs.count, round_ * 10) for _ in range(4)]
            asked = list(cancellers.map(lambda future: future.cancel(), futures * 2))
            concurrent.futures.wait(futures)
            for i, future in enumerate(futures):
                if future.cancelled():
                    assert asked[i] or asked[i + 4]
                    assert future.state["status"] == "cancelled"
                else:
                    assert future.result() == round_ * 10
                    assert future.state == {"n": round_ * 10, "total": round_ * 10, "status": "done"}


def test_a_task_that_is_cancelled_in_its_last_step_is_cancelled_though_all_is_counted(local_pool, gate):
    future = local_pool.submit(jobs.wait_in_the_last_step, 3, gate)
    until(lambda: future.state["n"] == 2)
    assert future.cancel()
    open_gate(gate)
    with pytest.raises(CancelledError):
        future.result()
    assert future.state == {"n": 3, "total": 3, "status": "cancelled"}
