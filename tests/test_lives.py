"""Whatever happens to tasks, in whichever order: each future ends once, in the state that its task had deserved.

A state machine submits, cancels, steps, ends and kills puppets, tasks that do what they are told through a socket, and knows
what must become of each; and thousands of tasks are cancelled at random.
"""

import concurrent.futures
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from multiprocessing.connection import Listener
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from progress_executor import IMPLEMENTATION, SyncProgressExecutor, ThreadPoolProgressExecutor, WorkerDied

from . import jobs
from .conftest import DEADLINE, KINDS, LOCAL, POOLS, START_METHODS, make_executor, open_gate, until

WORKERS = 2
OVERTAKES = 6 * WORKERS
"""How many tasks may start before an earlier one that was given to a worker in advance."""


class Life:
    """A task as the model knows it."""

    def __init__(self, number):
        self.number = number
        self.n = 0
        self.pid = None  # of the process in which it runs
        self.overtaken = 0  # how often a later one has started before it
        self.asked = False  # to stop
        self.end = None  # "cancelled", ValueError, TimeoutError, WorkerDied or ("value", ...)
        self.told = []

    def __repr__(self):
        return f"task {self.number}"


class Pool(RuleBasedStateMachine):
    kind = "thread"

    def __init__(self):
        super().__init__()
        self.executor = make_executor(self.kind, WORKERS)
        self.executor.submit(jobs.add, 1).result()  # workers that are forked now have no copy of the listener
        self.listener = Listener(family="AF_UNIX")
        self.listener._listener._socket.settimeout(DEADLINE)
        self.lives = []
        self.connected = {}
        self.shut = False

    tasks = Bundle("tasks")
    one_that_runs = st.integers(0, WORKERS - 1)

    @initialize(target=tasks, count=st.integers(1, 6))
    def begin(self, count):
        return self.submit(count)

    @precondition(lambda self: not self.shut)
    @rule(target=tasks, count=st.integers(1, 6))
    def submit(self, count):
        new = [Life(number) for number in range(len(self.lives), len(self.lives) + count)]
        for life in new:
            life.future = self.executor.submit(jobs.puppet, self.listener.address, life.number)
            life.future.add_progress_callback(lambda old, new, life=life: life.told.append(new))
            self.lives.append(life)
        self.settle()
        return multiple(*new)

    @precondition(lambda self: self.shut)
    @rule()
    def submit_too_late(self):
        with pytest.raises(RuntimeError, match="after shutdown"):
            self.executor.submit(jobs.add, 1)

    @rule(at=one_that_runs, n=st.integers(1, 100), order=st.sampled_from(["step", "step", "swallow", "ignore"]))
    def step(self, at, n, order):
        for life in self.running()[at : at + 1]:
            life.n += n
            assert self.tell(life, order, n) == ("cancelled" if life.asked else "counted")
            if life.asked and order != "ignore":
                self.ended(life, ("value", "swallowed") if order == "swallow" else "cancelled")
            else:
                assert life.future.state == {"n": life.n, "total": None, "status": "running"}

    @rule(at=one_that_runs, value=st.integers())
    def finish(self, at, value):
        for life in self.running()[at : at + 1]:
            self.connected[life.number].send(("return", value))
            self.ended(life, ("value", value))

    @rule(at=one_that_runs)
    def fail(self, at):
        for life in self.running()[at : at + 1]:
            self.connected[life.number].send(("fail", None))
            self.ended(life, ValueError)

    @rule(at=one_that_runs)
    def die(self, at):
        for life in self.running()[at : at + 1] if self.kind != "thread" else ():
            os.kill(life.pid, signal.SIGKILL)
            self.ended(life, WorkerDied, dead=True)

    @rule(at=one_that_runs, kill_after=st.sampled_from([0, 0.02]))
    def time_out_and_kill(self, at, kill_after):
        for life in self.running()[at : at + 1] if self.kind != "thread" else ():
            life.future.set_deadline(timeout=0.001, kill_after=kill_after)
            if not life.asked:  # else it has no effect
                self.ended(life, TimeoutError, dead=True)

    @rule(at=one_that_runs, kill_after=st.sampled_from([0, 0.02]))
    def cancel_and_kill(self, at, kill_after):
        for life in self.running()[at : at + 1]:
            if self.kind == "thread":
                with pytest.raises(ValueError, match="kill_after"):
                    life.future.cancel(kill_after=kill_after)
            else:
                assert life.future.cancel(kill_after=kill_after)
                self.ended(life, "cancelled", dead=True)

    @rule(life=tasks, kill_after=st.sampled_from([None, 0, 1000]))
    def cancel(self, life, kill_after):
        """Nobody is killed: for one that is pending or done, nor for one that runs and stops in time."""
        before = life.end
        if self.kind == "thread" or (kill_after == 0 and life in self.running()):
            kill_after = None
        assert life.future.cancel(kill_after=kill_after) == (before in (None, "cancelled"))
        assert before is not None or life.future.cancel_requested()
        if life in self.running():
            life.asked = True
            assert life.future.running()
        elif before is None:  # at once, and it is never entered
            assert life.future.cancelled()
            life.end = "cancelled"

    @precondition(lambda self: self.kind != "thread" and not self.shut)
    @rule(target=tasks, count=st.integers(1, 3))
    def die_idle(self, count):
        """A worker that has nothing to do dies; who submits then does not notice."""
        while self.running():
            self.finish(0, "in time")
        for pid in [life.pid for life in self.lives if life.pid in self.workers()][-1:]:
            with contextlib.suppress(ProcessLookupError):  # once more
                os.kill(pid, signal.SIGKILL)
        return self.submit(count)

    @precondition(lambda self: not self.shut)
    @rule(cancel_futures=st.booleans())
    def shut_down(self, cancel_futures):
        running = self.running()
        self.executor.shutdown(wait=False, cancel_futures=cancel_futures)
        self.shut = True
        for life in self.lives:
            if cancel_futures and life.end is None and life not in running:
                assert life.future.cancelled()
                life.end = "cancelled"

    @rule()
    def deliver(self):
        concurrent.futures.wait([life.future for life in self.lives], timeout=0)

    def running(self):
        return [life for life in self.lives if life.end is None and life.number in self.connected]

    def workers(self):
        return self.executor._processes

    def tell(self, life, *order):
        orders = self.connected[life.number]
        orders.send(order)
        assert orders.poll(DEADLINE)
        return orders.recv()

    def ended(self, life, end, dead=False):
        life.end = end
        until(life.future.done)
        if self.kind != "thread" and not self.shut:
            assert (life.pid in self.workers()) == (not dead)
        self.settle()

    def settle(self):
        """Wait for the tasks that the pool starts now: as many as it has workers, and nearly in the order of submission."""
        undone = [life for life in self.lives if life.end is None]
        while len(self.running()) < min(len(undone), WORKERS):
            connection = self.listener.accept()
            number, pid = connection.recv()
            self.connected[number] = connection
            self.lives[number].pid = pid
            for life in undone:
                if life.number < number and life.number not in self.connected:
                    life.overtaken += 1
                    # Those who start at the same time tell of it in any order.
                    assert life.overtaken <= WORKERS - 1 + (0 if self.kind == "thread" else OVERTAKES)

    @invariant()
    def futures_are_as_they_should_be(self):
        for life in self.lives:
            assert life.future.done() == (life.end is not None)
            if life.end is not None:
                self.check_end(life)

    def check_end(self, life):
        future, end = life.future, life.end
        assert not future.running()
        status = end if end == "cancelled" else "done" if isinstance(end, tuple) else "failed"
        assert future.state == {"n": life.n, "total": None, "status": status}
        assert future.cancelled() == (end == "cancelled")
        if end == "cancelled":
            with pytest.raises(CancelledError):
                future.result(0)
        elif status == "done":
            assert future.result(0) == end[1]
        else:
            error = future.exception(0)
            assert type(error) is end
            if end is WorkerDied:
                assert (error.pid, error.exitcode, error.state["n"]) == (life.pid, -signal.SIGKILL, life.n)

    def teardown(self):
        for strings in (self.listener, *self.connected.values()):
            strings.close()  # with which the puppets that are left end
        self.executor.shutdown()
        for life in self.lives:
            assert life.future.done()
            if life.end is None:
                life.end = type(life.future.exception())
                assert issubclass(life.end, (EOFError, OSError))
            self.check_end(life)
            statuses = [state["status"] for state in life.told]
            assert statuses == sorted(statuses, key=["pending", "running", "done", "failed", "cancelled"].index)
            assert life.told[-1] == life.future.state
            assert len(life.told) == 1 or life.told[-2]["status"] in ("pending", "running")
            assert life.number in self.connected or life.end == "cancelled" or issubclass(life.end, OSError)


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


class CancelledAtRandom:
    """One in ten goes on until it is cancelled while it runs; half of those keep their value all the same."""

    UNTIL_CANCELLED = (jobs.step_until_cancelled, jobs.step_until_cancelled_and_return)

    def __init__(self, seed):
        self.seed = seed
        self.futures, self.told, self.asked, self.ended = [], {}, set(), []
        self.over = threading.Event()

    def live(self, executor, count):
        cancellers = [threading.Thread(target=self.cancel_at_random, args=(f"{self.seed}-{n}",)) for n in range(2)]
        for canceller in cancellers:
            canceller.start()
        chance = random.Random(self.seed)
        for number in range(count):
            self.submit(executor, number, chance)
            if number % 100 == 99:  # cancelled ones are among those that run, and not far from them
                concurrent.futures.wait(self.futures[-150:-50])
        concurrent.futures.wait(self.futures)
        self.over.set()
        for canceller in cancellers:
            canceller.join()

    def submit(self, executor, number, chance):
        job = chance.choice([*[jobs.count] * 17, jobs.count_then_fail, *self.UNTIL_CANCELLED])
        n = STEPS if job in self.UNTIL_CANCELLED else chance.randrange(30)
        future = executor.submit(job, n)
        future.add_done_callback(lambda _: self.ended.append(number))
        if number % 10 == 0:
            self.told[number] = states = []
            future.add_progress_callback(lambda old, new: states.append(new))
        future.job, future.n = job, n
        self.futures.append(future)

    def cancel_at_random(self, seed):
        chance = random.Random(seed)
        while not self.over.is_set():
            recent = range(max(0, len(self.futures) - 200), len(self.futures))
            if recent:
                self.cancel(chance.choice(recent))
            for number in recent:
                future = self.futures[number]
                if future.n == STEPS and not future.done() and future.state["n"] > chance.randrange(9):
                    self.cancel(number)
            time.sleep(chance.random() / 2000)

    def cancel(self, number):
        if self.futures[number].cancel():
            self.asked.add(number)

    def check(self, number):
        """How it has ended, in words."""
        future, asked = self.futures[number], number in self.asked
        n, total, status = future.state.values()
        if status == "cancelled":
            assert asked
            assert n <= future.n
            with pytest.raises(CancelledError):
                future.result(0)
            if future.job is jobs.step_until_cancelled_and_return:
                assert n == 0  # it was never entered
            return "cancelled while it ran" if n else "cancelled"
        if future.job is jobs.count_then_fail:
            assert isinstance(future.exception(0), ValueError)
            assert (n, total, status) == (future.n, future.n, "failed")
        else:
            assert (future.result(0), status) == (n, "done")
            assert n == future.n or (future.job is jobs.step_until_cancelled_and_return and asked)
        return f"{status} though asked to stop" if asked else status

    def check_told(self):
        for number, states in self.told.items():
            assert states[-1] == self.futures[number].state
            assert [state["status"] in ("done", "failed", "cancelled") for state in states].count(True) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", POOLS)
def test_of_twenty_thousand_tasks_that_are_cancelled_at_random_none_is_lost(kind):
    count = 20_000
    lives = CancelledAtRandom(IMPLEMENTATION)  # other cancels in each form
    with make_executor(kind, 4) as executor:
        lives.live(executor, count)
    ends = Counter(map(lives.check, range(count)))
    assert sorted(lives.ended) == list(range(count))  # the done callbacks, once each
    assert ends["cancelled while it ran"] > count / 100, ends
    assert ends["done though asked to stop"] > count / 100, ends
    assert min(ends["done"], ends["failed"], ends["cancelled"]) > count / 200, ends
    lives.check_told()


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
    future = worker.submit(enter, str(entered), None)
    until(lambda: future._task.slot is not None)  # it has been sent
    assert future.state["status"] == "pending"
    assert future.cancel()
    assert future.cancelled()
    assert future.cancel()
    open_gate(gate)
    assert blocker.result(DEADLINE) == blocker.state["n"]
    assert worker.submit(jobs.count, 3).result(DEADLINE) == 3
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


def test_a_task_that_is_cancelled_in_its_last_step_is_cancelled_though_all_is_counted(local_pool, gate, tmp_path):
    entered = tmp_path / "entered"
    future = local_pool.submit(jobs.wait_in_the_last_step, 3, str(entered), gate)
    until(entered.exists)
    assert future.cancel()
    open_gate(gate)
    with pytest.raises(CancelledError):
        future.result()
    assert future.state == {"n": 3, "total": 3, "status": "cancelled"}
