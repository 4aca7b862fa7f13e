"""`kill_after`: what does not stop when it is asked to is killed with its worker process, and nobody else notices.

So it is with workers that die in whichever moment: each costs its own task at most.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from fractions import Fraction

import pytest

from progress_executor import ProcessPoolProgressExecutor, WorkerDied

from . import jobs
from .conftest import DASK, DEADLINE, START_METHODS, make_executor, open_gate, until
from .test_exit import run
from .test_process import alive

GRACE = 0.2
IN_TIME = 0.3
"""Seconds after the grace in which a task that does not stop has ended."""


def hangs(future):
    return future.state == {"n": 7, "total": 9, "status": "hanging"}


@contextlib.contextmanager
def pool_of(method, max_workers=2, **kwargs):
    with make_executor(method, max_workers, **kwargs) as executor:
        try:
            yield executor
        except BaseException:
            executor.kill_workers()  # a test that fails leaves what would never end
            raise


def is_in_time(attempt):
    """Whether it takes the grace and not much more; of three attempts one is enough, as the machine may be busy."""
    seconds = []
    while len(seconds) < 3:
        seconds.append(attempt())
        assert seconds[-1] > GRACE
        if seconds[-1] < GRACE + IN_TIME:
            return True
    return False


def pid_of(executor):
    """The process of its only worker."""
    (pid,) = executor._processes
    return pid


# The target


@pytest.mark.parametrize("hang", jobs.HANGS)
@pytest.mark.parametrize("method", START_METHODS)
def test_what_does_not_stop_is_killed_after_the_grace(method, hang, gate):
    def seconds():
        future = pool.submit(jobs.hang_by, hang)
        until(lambda: hangs(future))
        asked = time.monotonic()
        assert future.cancel("why", kill_after=GRACE)
        with pytest.raises(CancelledError, match=r"^why$"):
            future.result(DEADLINE)
        ended = time.monotonic()
        assert future.state == {"n": 7, "total": 9, "status": "cancelled"}
        assert pool.submit(jobs.add, 1).result(DEADLINE) == 2
        return ended - asked

    with pool_of(method) as pool:
        neighbour = pool.submit(jobs.step_until, gate)
        assert is_in_time(seconds)
        n = neighbour.state["n"]
        until(lambda: neighbour.state["n"] > n)
        open_gate(gate)
        assert neighbour.result(DEADLINE) == neighbour.state["n"]


DEADLINES = {"timeout": "the task ran for longer than 0.1 s", "stall": "no progress for 0.1 s"}


@pytest.mark.parametrize("deadline", DEADLINES)
@pytest.mark.parametrize("method", START_METHODS)
def test_what_does_not_stop_at_its_deadline_is_killed(method, deadline):
    def seconds():
        future = pool.submit(jobs.hang_by, "swallowed errors")
        until(lambda: hangs(future))
        set_at = time.monotonic()
        future.set_deadline(**{deadline: 0.1}, kill_after=GRACE)
        with pytest.raises(TimeoutError, match=f"^{DEADLINES[deadline]}$"):
            future.result(DEADLINE)
        ended = time.monotonic()
        assert not future.cancelled()
        assert future.state == {"n": 7, "total": 9, "status": "failed"}
        return ended - set_at - 0.1 * (deadline == "stall")  # the other one counts from its start

    with pool_of(method, 1) as pool:
        assert is_in_time(seconds)


def test_of_two_graces_the_shorter_one_counts():
    with pool_of("fork", 1) as pool:
        future = pool.submit(jobs.hang_by, "a loop")
        until(lambda: hangs(future))
        for seconds in (None, 1000, 0.1, 1000, None):
            assert future.cancel(kill_after=seconds)
        with pytest.raises(CancelledError):
            future.result(DEADLINE)


@pytest.mark.parametrize("method", START_METHODS)
def test_a_task_that_stops_in_time_is_not_killed(method):
    with pool_of(method, 1) as pool:
        future = pool.submit(jobs.step_until, "")
        until(lambda: future.state["n"])
        pid = pid_of(pool)
        assert future.cancel(kill_after=GRACE)
        after = pool.submit(jobs.count_slowly, 40, 0.01)  # it runs when the grace is over
        with pytest.raises(CancelledError):
            future.result(DEADLINE)
        assert after.result(DEADLINE) == 40
        assert pool.submit(os.getpid).result(DEADLINE) == pid


def test_a_deadline_that_does_not_pass_kills_nobody():
    with pool_of("fork", 1) as pool:
        future = pool.submit(jobs.count_slowly, 30, 0.01)
        future.set_deadline(timeout=1000, stall=1000, kill_after=0)
        assert future.result(DEADLINE) == 30


def test_a_value_returned_in_time_is_kept():
    with pool_of("fork", 1) as pool:
        future = pool.submit(jobs.return_when_cancelled, "value")
        until(lambda: future.state["n"])
        assert future.cancel(kill_after=1000)
        assert future.result(DEADLINE) == "value"
        assert not future.cancel(kill_after=0)


@contextlib.contextmanager
def held_up(pool, gate, *calls):
    """The worker goes on with the calls while who serves it stays in a done callback, and reads no answer."""
    there, go = threading.Event(), threading.Event()
    _, first, *futures = (pool.submit(*call) for call in ((jobs.wait_for, gate), (jobs.add, 1), *calls))
    first.add_done_callback(lambda _: (there.set(), go.wait(DEADLINE)))
    open_gate(gate)
    assert there.wait(DEADLINE)
    try:
        yield futures
    finally:
        go.set()


def test_a_value_that_has_arrived_survives_the_kill(gate, tmp_path):
    with pool_of("fork", 1) as pool:
        second_gate = str(tmp_path / "second gate")
        with held_up(pool, gate, (jobs.wait_for, second_gate)) as (future,):
            link = pool._workers.links[0]
            open_gate(second_gate)  # not before: the answer might be read together with the one before
            assert link._launched.ends[1].poll(DEADLINE)  # the answer
            assert future.cancel(kill_after=0)
            until(lambda: link._killed is not None)
        assert future.result(DEADLINE) == "waited"
        assert future.state["status"] == "done"
        assert pool.submit(jobs.add, 2).result(DEADLINE) == 3


# Everybody else


@pytest.mark.parametrize("number", [0, 1], ids=["given in advance", "in the queue"])
@pytest.mark.parametrize("method", START_METHODS)
def test_a_pending_task_is_cancelled_at_once_and_nobody_killed(method, number, tmp_path, gate):
    with pool_of(method, 1) as pool:
        before = pool.submit(jobs.wait_for, gate)
        blocker = pool.submit(jobs.step_until, gate + "2")
        pending = [pool.submit(jobs.note_and_wait_for, str(tmp_path / name), gate) for name in "ab"]
        open_gate(gate)
        until(lambda: blocker.state["n"] and pending[0]._task.slot is not None)
        pid = pid_of(pool)
        assert pending[number].cancel(kill_after=0)
        assert pending[number].cancelled()
        open_gate(gate + "2")
        assert before.result(DEADLINE) == pending[1 - number].result(DEADLINE) == "waited"
        assert blocker.result(DEADLINE) == blocker.state["n"]
        assert pool.submit(os.getpid).result(DEADLINE) == pid
        assert not (tmp_path / "ab"[number]).exists()


def test_what_was_given_in_advance_to_a_killed_worker_moves(gate):
    with pool_of("fork", 1) as pool:
        _, future, following = (
            pool.submit(*call) for call in ((jobs.wait_for, gate), (jobs.hang_by, "a loop"), (os.getpid,))
        )
        open_gate(gate)
        until(lambda: hangs(future) and following._task.slot is not None)
        pid = pid_of(pool)
        assert future.cancel(kill_after=0)
        assert following.result(DEADLINE) != pid
        assert future.cancelled()


def try_to_kill(future):
    """Return when the grace of nothing is over, and what was to be done has been."""
    tried = threading.Event()

    def kill(kill=future._task.kill):
        killed = kill()
        tried.set()
        return killed

    future._task.kill = kill
    assert future.cancel(kill_after=0)
    assert tried.wait(DEADLINE)


def test_a_kill_is_not_made_once_the_next_task_has_begun(gate):
    with pool_of("fork", 1) as pool:
        with held_up(pool, gate, (jobs.add, 1), (jobs.step_until, gate + "2")) as (future, after):
            until(lambda: after.state["n"])
            try_to_kill(future)
        open_gate(gate + "2")
        assert future.result(DEADLINE) == 2
        assert after.result(DEADLINE) == after.state["n"]


def test_a_kill_waits_for_the_value_of_the_task_before(gate):
    with pool_of("fork", 1) as pool:
        with held_up(pool, gate, (jobs.add, 1), (jobs.hang_by, "a loop")) as (before, future):
            until(lambda: hangs(future))
            try_to_kill(future)
        assert before.result(DEADLINE) == 2
        with pytest.raises(CancelledError):
            future.result(DEADLINE)
        assert future.state["n"] == 7


@pytest.mark.parametrize("method", ["fork", *(pytest.param(method, marks=pytest.mark.slow) for method in START_METHODS[1:])])
def test_a_kill_at_a_random_moment_never_hits_the_next_task(method, gate):
    chance, ends, rounds = random.Random(method), Counter(), 300
    with pool_of(method) as pool:
        neighbour = pool.submit(jobs.step_until, gate)
        for number in range(rounds):
            calls = [(jobs.add, number), (time.sleep, 0.002), *[(jobs.add, number)] * 3]
            before, target, *after = (pool.submit(*call) for call in calls)
            until(lambda target=target: target.running() or target.done())
            time.sleep(chance.uniform(0, 0.004))
            target.cancel(kill_after=0)
            assert [future.result(DEADLINE) for future in (before, *after)] == [number + 1] * 4
            concurrent.futures.wait([target], DEADLINE)
            ends[target.cancelled() or target.result(0)] += 1
        open_gate(gate)
        assert neighbour.result(DEADLINE) == neighbour.state["n"]
    assert ends.keys() == {True, None}
    assert min(ends.values()) > rounds / 50, ends


# Ctrl-C


def in_its_block(executor, begin, press):
    with executor:
        begin()
        press()


def while_it_is_left(executor, begin, press):
    with executor:
        begin()
        threading.Thread(target=lambda: (until(lambda: executor._crew.closed), press())).start()


def in_an_event_loop(executor, begin, press):
    async def main():
        async with executor:
            future = begin()
            press()
            await future

    asyncio.run(main())


@pytest.mark.parametrize("leave", [in_its_block, while_it_is_left, in_an_event_loop])
@pytest.mark.parametrize("method", START_METHODS)
def test_after_ctrl_c_an_executor_kills_what_does_not_stop(method, leave, tmp_path):
    def seconds():
        cleaned = tmp_path / str(len(list(tmp_path.iterdir())))
        executor = make_executor(method, kill_after=GRACE)
        futures, times = [], []

        def begin():
            futures.append(executor.submit(jobs.hang_by, "a loop"))
            futures.append(executor.submit(jobs.clean_up_when_cancelled, "", str(cleaned)))
            futures.extend(executor.submit(jobs.add, 1) for _ in range(4))
            futures[0].add_done_callback(lambda _: times.append(time.monotonic()))
            until(lambda: hangs(futures[0]) and futures[1].state["n"])
            return futures[0]

        def press():
            times.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        too_late = threading.Timer(DEADLINE, executor.kill_workers)
        too_late.start()
        with pytest.raises(KeyboardInterrupt):
            leave(executor, begin, press)
        too_late.cancel()
        assert all(future.cancelled() for future in futures)
        assert futures[0].state == {"n": 7, "total": 9, "status": "cancelled"}
        assert cleaned.read_text() == "except finally"
        pressed, ended = times
        return ended - pressed

    assert is_in_time(seconds)


def test_a_program_that_ctrl_c_ends_kills_what_does_not_stop():
    output = run(
        """
        import signal
        from tests.test_kill import hangs

        executor = ProcessPoolProgressExecutor(2, kill_after=0.2)
        future = executor.submit(jobs.hang_by, "a loop")
        future.add_done_callback(lambda future: print(future.state))
        until(lambda: hangs(future))
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            sys.last_type = KeyboardInterrupt  # as if it had ended the program, which would print it
        """
    )
    assert output == "{'n': 7, 'total': 9, 'status': 'cancelled'}\n"


# Mistakes

ASKS = {
    "cancel": lambda future, seconds: future.cancel(kill_after=seconds),
    "set_deadline": lambda future, seconds: future.set_deadline(0.001, kill_after=seconds),
    "the executor": lambda _, seconds: ProcessPoolProgressExecutor(kill_after=seconds),
}
MISTAKES = {
    **dict.fromkeys([-1, -0.1, float("nan"), float("inf"), 10**400], ValueError),
    **dict.fromkeys(["1", b"1", (1,), 1j], TypeError),
}


@pytest.mark.parametrize("ask", ["cancel", "set_deadline"])
@pytest.mark.parametrize("kind", ["thread", "sync", *(["dask"] if DASK else [])])
def test_what_has_no_process_of_its_own_cannot_be_killed(kind, ask):
    with make_executor(kind) as executor:
        future = executor.submit(jobs.count, 3)
        for _ in range(2):  # the second time it is done
            with pytest.raises(ValueError, match=r"^kill_after is for .*: what runs elsewhere cannot be killed alone$"):
                ASKS[ask](future, 0)
            assert future.result() == 3
        assert not future.cancel_requested()


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(("seconds", "error"), MISTAKES.items(), ids=[f"{seconds!r:.10}" for seconds in MISTAKES])
def test_a_grace_that_is_none_is_an_error_that_changes_nothing(ask, seconds, error):
    with pool_of("fork", 1) as pool:
        future = pool.submit(jobs.count, 3)
        with pytest.raises(error, match=r"^kill_after must be a "):
            ASKS[ask](future, seconds)
        assert future.result(DEADLINE) == 3
        assert not future.cancel_requested()


@pytest.mark.parametrize("seconds", [0, 0.0, True, Fraction(1, 100), None])
def test_a_grace_may_be_any_number_that_is_not_negative(seconds):
    with pool_of("fork", 1, kill_after=seconds) as pool:
        future = pool.submit(jobs.step_until, "")
        future.set_deadline(1000, kill_after=seconds)
        until(lambda: future.state["n"])
        assert future.cancel(kill_after=seconds)
        with pytest.raises(CancelledError):
            future.result(DEADLINE)


# A thousand deaths


class Killer(threading.Thread):
    """Kills workers that have reported from a task, a moment later, whatever they do then; each sixth time any other one.

    That may only be starting. Of those never three in a row: that would be the end of the pool.
    """

    def __init__(self, pool, futures, count):
        super().__init__()
        self.pool, self.futures, self.count = pool, futures, count
        self.chance = random.Random(count)
        self.killed = set()

    def run(self):
        while len(self.killed) < self.count and not self.pool._crew.closed:
            time.sleep(self.chance.uniform(0, 0.005))
            if len(self.killed) % 6 == 5:
                pids = set(self.pool._processes)
            else:
                pids = {int(status) for future in self.futures[-40:] if (status := future.state["status"]).isdecimal()}
            pids -= self.killed
            if pids:
                pid = self.chance.choice(sorted(pids))
                time.sleep(self.chance.uniform(0, 0.02))
                if pid in self.pool._processes:  # else the number may be another process's by now
                    self.killed.add(pid)
                    with contextlib.suppress(ProcessLookupError):  # it has just gone
                        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kills"), [("fork", 1000), ("forkserver", 1000), ("spawn", 200)])
def test_each_of_a_thousand_deaths_costs_one_task_at_most(method, kills, tmp_path, capsys):
    notes, chance, began = str(tmp_path / "notes"), random.Random(method), time.monotonic()
    futures, asked, pids, texts, told, ended = [], set(), set(), {}, {}, []
    with pool_of(method, 4) as pool:
        killer = Killer(pool, futures, kills)
        killer.start()
        while killer.is_alive():
            number = len(futures)
            size = chance.choice([1, 1, 1, 1 << 20])
            future = pool.submit(jobs.report_and_return, number, size, notes)
            future.number, future.size = number, size
            future.add_done_callback(lambda future: ended.append(future.number))
            if number % 10 == 0:
                texts[number], told[number] = [], []
                future.add_log_callback(texts[number].append)
                future.add_progress_callback(lambda old, new, states=told[number]: states.append(new))
            futures.append(future)
            if chance.random() < 0.2:
                future = chance.choice([future for future in futures[-12:] if not future.done()] or [future])
                if future.cancel(kill_after=chance.choice([None, 0, 0.01])):
                    asked.add(future.number)
            concurrent.futures.wait([futures[max(number - chance.choice([1, 12]), 0)]], DEADLINE)  # some workers are idle
            pids.update(pool._processes)
        assert not concurrent.futures.wait(futures, DEADLINE).not_done
        assert [pool.submit(jobs.add, number).result(DEADLINE) for number in range(20)] == list(range(1, 21))
    with open(notes) as file:
        noted = Counter(file.read().splitlines())
    ends, cost = Counter(), Counter()
    for number, future in enumerate(futures):
        ran = noted[f"{number} begins"], noted[f"{number} ends"]
        assert max(ran) <= 1  # none began twice
        if future.cancelled():
            assert number in asked
            ends["cancelled"] += 1
        elif (error := future.exception(0)) is not None:
            assert type(error) is WorkerDied
            assert error.exitcode == -signal.SIGKILL
            cost[error.pid] += 1
            ends["died"] += 1
        else:
            assert (ran, future.state["n"]) == ((1, 1), 20)
            value, data = future.result(0)
            assert value == number
            assert data == bytes([number % 256]) * future.size
            ends["values"] += 1
    assert cost.keys() <= killer.killed
    assert set(cost.values()) == {1}
    assert min(ends.values()) > kills / 20
    assert sorted(ended) == list(range(len(futures)))
    for number, said in texts.items():
        whole = [f"{number} at {step}" for step in jobs.SAID_AT]
        assert said == whole[: len(said)]
        assert told[number][-1] == futures[number].state
        if futures[number].state["status"] == "done":
            assert said == whole
    until(lambda: not any(map(alive, pids | killer.killed)), "the end of all workers")
    with capsys.disabled():
        seconds = round(time.monotonic() - began, 1)
        print(f"\n{method}: {kills} kills in {seconds} s, tasks {dict(ends)}, neighbours lost 0, workers left 0, pool alive")
