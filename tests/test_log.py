"""What a task says with `progress.log` is told on the caller's side: in order, before its end, and above the bars."""

import asyncio
import concurrent.futures
import contextlib
import io
import itertools
import logging
import os
import re
import signal
import threading
import time
from collections import deque
from concurrent.futures.process import BrokenProcessPool

import pytest
from rich.console import Console
from rich.progress import Progress

import progress_executor
from progress_executor import (
    ProcessPoolProgressExecutor,
    ProgressGroup,
    SyncProgressExecutor,
    ThreadPoolProgressExecutor,
    _monitor,
    _sinks,
    _tasks,
)
from progress_executor._executors.process import wire
from progress_executor._messages import BOUND, LOG, LOST, Sender
from progress_executor._speedups._layout import TEXT_SIZE

from . import jobs
from .conftest import CONCURRENT, DEADLINE, make_executor, open_gate, until
from .test_bars import FakeTerminal, RecordedBar

ON_DASK = () if "dask" not in CONCURRENT else progress_executor.DaskProgressExecutor
LOST_TEXTS = re.compile(r"\[(\d+) lost: said faster than they were read\]")
NUMBERS = [str(i) for i in range(50)]


def said_by(watched):
    """The list into which all is put that is said there."""
    told = []
    watched.add_log_callback(told.append)
    return told


@contextlib.contextmanager
def waited_for(watched):
    """While another thread waits for it, until it has ended."""
    waiting = threading.Thread(target=watched.result)
    waiting.start()
    yield
    waiting.join()


def check_whole(told, said):
    """That all was told that was `said`, or how many are missing, in their places."""
    position = 0
    for text in told:
        lost = LOST_TEXTS.fullmatch(text)
        if lost:
            position += int(lost[1])
        else:
            assert text == said[position]
            position += 1
    assert position == len(said)


def numbers(n, size):
    """What `jobs.say_numbers` says."""
    return [f"{i} ".ljust(size, ".") for i in range(n)]


@pytest.fixture
def speaker(updater, slot):
    """An Updater, and what takes the payloads of all that it has sent."""
    sent = deque()

    def take():
        messages = [sent.popleft() for _ in range(len(sent))]
        slot.take(sum(size for _, _, size in messages))
        return [payload for _, payload, _ in messages]

    return updater(slot.buffer, None, Sender(slot, sent.append)), take


# What is told


def test_each_text_is_told_in_order_and_before_the_final_state(executor):
    future = executor.submit(jobs.say, NUMBERS)
    told = said_by(future)
    future.add_progress_callback(lambda old, new: told.append(new["status"]))
    future.result()
    assert [text for text in told if text != "running"] == [*NUMBERS, "done"]


def test_they_come_while_the_task_runs(each_pool, gate):
    future = each_pool.submit(jobs.say_and_wait, ["one", "two"], gate)
    told = said_by(future)
    with waited_for(future):
        until(lambda: told == ["one", "two"])
        open_gate(gate)
    assert told == ["one", "two"]


def test_who_listens_is_told_what_was_said_before(each_pool, gate):
    future = each_pool.submit(jobs.say_and_wait, ["one", "two"], gate)
    until(lambda: future.state["n"] == 2)
    group = ProgressGroup([future])
    first, second, third = said_by(future), said_by(future), said_by(group)
    open_gate(gate)
    group.result()
    assert first == second == third == ["one", "two"]


def test_who_listens_after_the_end_is_told_what_was_said(executor):
    future = executor.submit(jobs.say, NUMBERS)
    future.result()
    first, second = said_by(future), said_by(future)
    future.result()
    group = ProgressGroup([future])
    third, fourth = said_by(future), said_by(group)
    group.result()
    future.result()
    assert first == second == NUMBERS
    assert third == fourth == []


def test_what_was_read_and_told_to_nobody_is_told_to_who_comes(pool, tmp_path):
    gates = [str(tmp_path / name) for name in "ab"]
    future = pool.submit(jobs.say_at_gates, ["one", "two", "three"], gates)
    first = said_by(future)
    for n, gate in enumerate(gates, 1):
        until(lambda: future._task.unheard)
        future._task.pass_on()
        assert len(future._task._said) == n
        open_gate(gate)
    group = ProgressGroup([future])
    second = said_by(group)
    group.result()
    future.result()
    assert first == second == ["one", "two", "three"]


def test_what_a_task_that_fails_has_said_is_told(executor):
    future = executor.submit(jobs.say_then, None, NUMBERS)
    told = said_by(future)
    with pytest.raises(ValueError, match="on purpose"):
        future.result()
    assert told == NUMBERS


@pytest.mark.parametrize("death", jobs.DEATHS)
def test_what_a_worker_that_died_has_said_is_told(death):
    with ProcessPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.say_then, death, NUMBERS)
        told = said_by(future)
        with pytest.raises(BrokenProcessPool):
            future.result()
    assert told == NUMBERS


def test_a_cancelled_task_has_its_last_text_told(each_pool):
    future = each_pool.submit(jobs.say_without_end)
    told = said_by(future)
    until(lambda: future._task.unheard)
    future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(DEADLINE)
    assert "." * 1000 in told


def test_who_says_something_learns_that_the_task_is_to_stop(speaker, slot):
    progress, take = speaker
    slot.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        progress.log("the last")
    assert take() == ["the last"]


def test_a_function_that_takes_no_progress_can_say_something(executor):
    future = executor.submit(jobs.say_deeply, "deep")
    told = said_by(future)
    future.result()
    assert told == ["deep"]


def test_parts_say_it_for_the_task(executor):
    future = executor.submit(jobs.say_in_parts)
    told = said_by(future)
    future.result()
    assert told == ["before", "in a part", "between", "in a part of a part", "after"]


def test_threads_of_a_task_are_told_each_in_its_order(executor):
    future = executor.submit(jobs.say_in_threads, 4, 30, 0)
    told = said_by(future)
    future.result()
    assert len(told) == 120
    for name in range(4):
        assert [text for text in told if text.startswith(f"{name} ")] == [f"{name} {i} " for i in range(30)]


def test_it_is_said_to_nobody_outside_of_a_task(updater):
    progress = updater()
    for _ in range(10_000):
        progress.log("to whom?")
    assert (progress.n, progress.total, progress.status) == (0, None, "")


@pytest.mark.parametrize("text", [b"bytes", 7, None])
def test_a_text_is_a_str(updater, text):
    with pytest.raises(TypeError, match="text must be a str"):
        updater().log(text)


def test_a_text_is_cut_before_a_character_that_does_not_fit(speaker):
    progress, take = speaker
    for text in ("", "é" * 2001, "a" + "é" * 2000, "\udc80"):
        progress.log(text)
        assert take() == [text.encode("utf-8", "replace")[:TEXT_SIZE].decode("utf-8", "ignore")]


# Who listens


def test_callbacks_come_in_order_and_go_one_by_one(executor):
    future = executor.submit(jobs.say, ["one"])
    told = []

    def first(text):
        told.append(("first", text))

    future.add_log_callback(first)
    future.add_log_callback(lambda text: told.append(("second", text)))
    future.add_log_callback(first)
    future.remove_log_callback(first)
    future.result()
    assert told == [("second", "one"), ("first", "one")]


def test_what_is_no_callback_is_refused(executor):
    future = executor.submit(jobs.say, ["one"])
    with pytest.raises(TypeError, match="must be callable"):
        future.add_log_callback("print")
    with pytest.raises(ValueError, match="is not a log callback"):
        future.remove_log_callback(print)
    future.add_progress_callback(print)
    with pytest.raises(ValueError, match="is not a log callback"):
        future.remove_log_callback(print)
    future.add_log_callback(future.cancel)
    with pytest.raises(ValueError, match="is not a progress callback"):
        future.remove_progress_callback(future.cancel)
    future.remove_log_callback(future.cancel)
    future.remove_progress_callback(print)
    future.result()


def test_one_that_raises_harms_nobody(executor, caplog):
    future = executor.submit(jobs.say, NUMBERS)

    def refuse(text):
        raise asyncio.CancelledError(text)

    future.add_log_callback(refuse)
    told = said_by(future)
    with caplog.at_level(logging.ERROR, "progress_executor"):
        future.result()
    assert told == NUMBERS
    assert len(caplog.records) == 50


def test_ctrl_c_in_a_callback_loses_nothing_that_it_was_not_about_to_tell(executor):
    future = executor.submit(jobs.say, NUMBERS)
    told = []

    def interrupt(text):
        told.append(text)
        if text == "7":
            raise KeyboardInterrupt

    future.add_log_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        future.result()
    if not isinstance(executor, SyncProgressExecutor):  # where it interrupts the task itself
        future.result()
        assert told == NUMBERS


def test_they_come_in_the_thread_of_the_event_loop_that_awaits(executor):
    threads = set()

    async def main():
        future = executor.submit(jobs.say, NUMBERS)
        told = said_by(future)
        future.add_log_callback(lambda text: threads.add(threading.get_ident()))
        await future
        assert told == NUMBERS

    asyncio.run(main())
    assert threads == {threading.get_ident()}


def test_ctrl_c_in_one_callback_keeps_no_text_from_the_others(pool):
    future = pool.submit(jobs.say, NUMBERS)

    def interrupt(text):
        if text == "7":
            raise KeyboardInterrupt

    future.add_log_callback(interrupt)
    told = said_by(future)
    with pytest.raises(KeyboardInterrupt):
        future.result()
    future.result()
    assert told == NUMBERS


def test_what_was_said_to_nobody_is_kept_for_who_comes(each_pool, tmp_path):
    gates = [str(tmp_path / name) for name in "ab"]
    future = each_pool.submit(jobs.say_at_gates, ["one", "two", "three"], gates)
    future.add_tqdm_callback(init_kwargs={"disable": True})
    future.add_tqdm_callback(init_kwargs={"file": io.StringIO()}, triggers={"cancelled"})
    first, second = said_by(future), []

    def deliver():
        future._task.monitor.poll(waited_for={future._task})

    until(lambda: deliver() or first)
    future.remove_log_callback(first.append)
    open_gate(gates[0])
    until(lambda: future.state["n"] == 2)
    for _ in range(3):
        time.sleep(0.11)  # an interval
        deliver()
    future.add_log_callback(second.append)
    open_gate(gates[1])
    future.result()
    assert first == ["one"]
    assert second == ["two", "three"]


def test_what_comes_behind_the_text_at_which_a_callback_removes_itself_is_kept_for_who_comes(each_pool, gate):
    future = each_pool.submit(jobs.say_and_wait, ["one", "two", "three"], gate)
    first, second = [], []

    def only_one(text):
        first.append(text)
        future.remove_log_callback(only_one)

    future.add_log_callback(only_one)
    with waited_for(future):
        until(lambda: first)
        future.add_log_callback(second.append)
        open_gate(gate)
    assert first == ["one"]
    assert second == ["two", "three"]


def test_a_signal_handler_that_delivers_while_another_begins_to_listen_loses_and_doubles_nothing(tmp_path):
    gates = [str(tmp_path / name) for name in "ab"]
    interruptions = []

    class Interrupting(_sinks.SharedMessage):
        @property
        def told(self):
            if not interruptions:
                interruptions.append(signal.raise_signal(signal.SIGUSR1))
            return False

        @told.setter
        def told(self, _):
            pass

    with ThreadPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.say_at_gates, ["one", "two", "three"], gates)
        future.add_log_callback(lambda text: None)
        until(lambda: future._task.unheard)
        future._task.pass_on()
        future._task._said[0] = Interrupting(LOG, "one")
        open_gate(gates[0])
        until(lambda: future._task.unheard)
        before = signal.signal(signal.SIGUSR1, lambda *_: future._task.pass_on())
        try:
            group = ProgressGroup([future])
            told = said_by(group)
        finally:
            signal.signal(signal.SIGUSR1, before)
            open_gate(gates[1])
        assert interruptions
        group.result()
    assert told == ["one", "two", "three"]


def test_who_waits_for_a_group_takes_nothing_of_what_others_say(local_pool, tmp_path, gate):
    other = local_pool.submit(jobs.say_and_wait, ["mine"], str(tmp_path / "other"))
    said_by(other)
    group = ProgressGroup([local_pool.submit(jobs.say_and_wait, ["ours"], gate)])
    told = said_by(group)
    with waited_for(group):
        until(lambda: told == ["ours"] and other.state["n"])
        time.sleep(0.25)  # two intervals
        assert other._task.unheard
        open_gate(gate)
    open_gate(tmp_path / "other")


def test_a_group_of_many_that_have_spoken_is_listened_to_at_once(executor):
    futures = [executor.submit(jobs.say, ["a", "b"]) for _ in range(500)]
    concurrent.futures.wait(futures)
    group = ProgressGroup(futures)
    comparisons = []

    class Counted(type(futures[0]._task._said[0])):
        def __eq__(self, other):
            comparisons.append(other)
            return self is other

        __hash__ = object.__hash__

    for future in futures:
        future._task._said = tuple(Counted(said.kind, said.payload) for said in future._task._said)
    told = said_by(group)
    group.result()
    assert len(told) == 1000
    assert not comparisons


def test_of_what_nobody_is_told_the_last_texts_are_kept(monkeypatch):
    for module in (_monitor, _tasks):
        monkeypatch.setattr(module, "KEPT", 50)
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.say, numbers(2000, 100))
        group = ProgressGroup([future])
        told = said_by(group)
        group._group.interval = DEADLINE  # told at the task's first step; the next is not due before the end
        future.result()
        assert len(future._task._said) == 50
        group.result()
    assert told[-50:] == numbers(2000, 100)[-50:]
    assert len(told) < 60


def test_a_group_is_told_what_its_members_say(executor):
    futures = [executor.submit(jobs.say, [f"{name} {i}" for i in range(20)]) for name in range(4)]
    group = ProgressGroup(futures)
    told = said_by(group)
    own = said_by(futures[1])
    group.result()
    assert len(told) == 80
    for name in range(4):
        assert [text for text in told if text.startswith(f"{name} ")] == [f"{name} {i}" for i in range(20)]
    assert own == [f"1 {i}" for i in range(20)]


def test_a_group_is_told_while_they_run(each_pool, gate):
    group = ProgressGroup([each_pool.submit(jobs.say_and_wait, ["here"], gate) for _ in range(2)])
    told = said_by(group)
    with waited_for(group):
        until(lambda: told == ["here", "here"])
        open_gate(gate)


# Faster than it is read


def test_who_says_more_than_is_read_is_slowed_and_loses_nothing(each_pool, gate):
    blocker = [each_pool.submit(jobs.wait_for, gate) for _ in range(2)]
    future = each_pool.submit(jobs.say_numbers, 5000, 100)
    told = said_by(future)
    open_gate(gate)
    asyncio.run(asyncio.wait_for(future.check_for_progress(0.02), None))
    if isinstance(each_pool, ON_DASK):  # where it takes a moment until a worker knows that somebody listens
        check_whole(told, numbers(5000, 100))
    else:
        assert told == numbers(5000, 100)
        assert len(future._task._said) < 1300  # what was told is not kept: of the last looks, at each what has room
    concurrent.futures.wait(blocker)


def test_threads_that_wait_for_the_same_room_lose_nothing(local_pool, gate):
    blocker = [local_pool.submit(jobs.wait_for, gate) for _ in range(2)]
    future = local_pool.submit(jobs.say_in_threads, 8, 10, 3000)
    told = said_by(future)
    open_gate(gate)
    future.result()
    for name in range(8):
        assert [text.rstrip(".") for text in told if text.startswith(f"{name} ")] == [f"{name} {i} " for i in range(10)]
    concurrent.futures.wait(blocker)


def test_threads_that_say_large_texts_at_once_tear_none():
    with ProcessPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.say_in_threads, 4, 100, TEXT_SIZE)
        told = said_by(future)
        future.result()
    for name in range(4):
        assert [text for text in told if text.startswith(f"{name} ")] == [
            f"{name} {i} ".ljust(TEXT_SIZE, ".") for i in range(100)
        ]


@pytest.mark.slow
def test_a_hundred_thousand_texts_beside_steps_come_in_order(pool):
    if isinstance(pool, ON_DASK):
        pytest.skip("a worker on Dask is not read so often")
    future = pool.submit(jobs.say_beside_steps, 100_000)
    told = said_by(future)
    asyncio.run(asyncio.wait_for(future.check_for_progress(0.01), None))
    assert told == list(map(str, range(100_000)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside threads
@pytest.mark.parametrize("kind", ["fork", "forkserver"])
def test_a_process_that_a_task_forks_says_nothing(kind):
    with make_executor(kind, 1) as executor:
        future = executor.submit(jobs.say_in_a_child)
        told = said_by(future)
        future.result()
        assert (told, future.state["n"]) == (["before", "child: 0"], 0)


def test_a_text_with_all_around_it_is_written_at_once():
    """A write of at most PIPE_BUF bytes is whole, whatever signal comes."""
    assert len(wire.message(wire.MESSAGE, (LOG, "x" * TEXT_SIZE, TEXT_SIZE + 8))) <= 4096


def test_all_that_is_lost_is_counted(speaker):
    progress, take = speaker
    for _ in range(7000):
        progress.log("x" * 4000)
    assert take()[-1] == "x" * 4000
    progress.log("one more")
    assert take() == [7000 - BOUND // 4008, "one more"]


@pytest.mark.parametrize("size", [1, 100, BOUND, BOUND + 1])
def test_no_more_than_the_bound_is_on_its_way(slot, size):
    sent = []
    sender = Sender(slot, sent.append)
    for _ in range(BOUND + 3):
        sender(LOG, "x", size)
    assert len(sent) == BOUND // size
    slot.take(size)
    sender(LOG, "y", size)
    sender.end()
    sender(LOG, "z", size)
    lost = BOUND + 3 - BOUND // size
    if size <= BOUND:
        assert sent[-2:] == [(LOST, lost, 0), (LOG, "y", size)]
    else:
        assert sent == [(LOST, lost + 1, 0)]


def test_any_object_may_be_a_message(tmp_path):
    with ProcessPoolProgressExecutor(1) as executor:
        future = executor.submit(jobs.send_objects)
        future.result()
        assert [said.payload for said in future._task._said] == [{"a": (1, 2.5)}, None, b"x" * 100_000]


def test_in_the_calling_thread_much_is_said_and_nothing_lost_nor_are_more_states_told():
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.say, numbers(2000, 100))
        told, states = said_by(future), []
        future.add_progress_callback(lambda old, new: states.append(new))
        began = time.monotonic()
        future.result()
        took = time.monotonic() - began
    assert told == numbers(2000, 100)
    assert len(states) <= 10 * took + 3


def test_what_nobody_reads_for_a_second_is_lost_and_told_to_be(pool, gate):
    blocker = [pool.submit(jobs.wait_for, gate) for _ in range(2)]
    future = pool.submit(jobs.say_numbers, 1000, 100)
    told = said_by(future)
    open_gate(gate)
    until(lambda: future._task.began() is not None)
    until(lambda: future._state == "FINISHED", "the end of a task that nobody reads")
    took = future.result()
    check_whole(told, numbers(1000, 100))
    assert LOST_TEXTS.fullmatch(told[-1])
    assert len(told) - 1 == BOUND // (100 + 8)
    assert took < (5 if isinstance(pool, ON_DASK) else 3)  # it has waited once
    concurrent.futures.wait(blocker)


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.skipif("dask" not in CONCURRENT, reason="the extra progress-executor[dask] is not installed")
def test_on_dask_what_a_task_said_before_it_failed_is_told(retries, tmp_path):
    with make_executor("dask") as executor:
        for i, seconds in enumerate([0.3] if retries else [0.01 * i for i in range(10)]):
            future = executor.submit(jobs.say_then_fail_later, str(tmp_path / str(i)), seconds, retries=retries)
            told = said_by(future)
            if not retries:
                with pytest.raises(ValueError, match="on purpose"):
                    future.result()
                assert told == ["first"]
            else:
                until(future.done)  # nobody delivers until then
                assert future.result() == 2
                assert told == ["first", "second"]


def test_it_waits_again_when_it_was_read_meanwhile(speaker, slot, monkeypatch):
    slot.listen()
    (progress, take), waits = speaker, []
    monkeypatch.setattr("progress_executor._messages.PATIENCE", 0.0)
    monkeypatch.setattr("progress_executor._messages.wait_while", lambda condition: waits.append(condition()))
    lost = 100 - BOUND // 1008
    for before in (0, lost):
        for _ in range(100):
            progress.log("x" * 1000)
        assert take() == [before] * bool(before) + ["x" * 1000] * (BOUND // 1008)
    assert waits == [False, False]
    progress.log("the last")
    assert take() == [lost, "the last"]


def test_where_nobody_listens_nobody_waits(updater):
    began = time.monotonic()
    progress = updater()
    for _ in range(1000):
        progress.log("x" * 1000)
    assert time.monotonic() - began < 1


def test_cancelling_ends_the_wait_for_room(each_pool):
    future = each_pool.submit(jobs.say_without_end)
    said_by(future)
    until(lambda: future._task.slot is not None and future.running())
    began = time.monotonic()
    future.cancel()
    until(future.done)
    assert time.monotonic() - began < (3 if isinstance(each_pool, ON_DASK) else 0.9)


# Slots


def test_the_next_task_of_a_slot_says_only_its_own():
    with ProcessPoolProgressExecutor(1) as executor:
        for text in map(str, range(30)):
            future = executor.submit(jobs.say, [text])
            if int(text) % 2:
                told = said_by(future)
                future.result()
                assert told == [text]


@pytest.mark.parametrize("kind", CONCURRENT)
def test_what_its_threads_say_after_the_end_of_a_task_is_not_the_next_ones(kind, tmp_path, gate):
    with make_executor(kind, 1) as executor:
        ended = str(tmp_path / "ended")
        first = executor.submit(jobs.leave_a_thread_that_speaks, ended, gate, str(tmp_path / "spoke"))
        told = said_by(first)
        with waited_for(first):
            until(lambda: told)
            open_gate(ended)
        second = executor.submit(jobs.say_and_wait, ["mine"], str(tmp_path / "second"))
        of_second = said_by(second)
        open_gate(gate)
        until((tmp_path / "spoke").exists)
        assert float((tmp_path / "spoke").read_text()) < 0.9  # nobody there waits for room
        open_gate(tmp_path / "second")
        second.result()
    assert told == ["here"]
    assert of_second == ["mine"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no setitimer")
def test_a_signal_handler_may_say_something_too(speaker):
    (progress, take), numbers, handled, taken = speaker, itertools.count(), [], []

    def handle(signum, frame):
        number = next(numbers)  # in one step: the next signal may come in the midst of this function
        handled.append(number)
        progress.log(f"handler {number}")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 5e-5, 5e-5)
    try:
        i = 0
        while len(handled) < 200:
            progress.log(f"task {i}")
            i += 1
            if not i % 10:
                taken += take()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    taken += take()
    assert [text for text in taken if text.startswith("task")] == [f"task {n}" for n in range(i)]
    said_in_handler = [text for text in taken if text.startswith("handler")]  # one of them may interrupt another
    assert sorted(said_in_handler) == sorted(f"handler {number}" for number in handled)


# What is shown


def printed(screen):
    """What is on a fake terminal, without what moves the cursor."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n")


def test_texts_stand_once_above_the_bars_of_a_terminal(executor):
    screen = FakeTerminal()
    futures = [executor.submit(jobs.say, [f"{name}: one\n  two\x1b[2J", f"{name}: three"]) for name in "ab"]
    group = ProgressGroup(futures)
    for watched in (group, *futures):
        watched.add_tqdm_callback(init_kwargs={"file": screen, "ncols": 60})
    group.result()
    lines = [line.rstrip() for line in printed(screen).splitlines()]
    for name in "ab":
        own = [line for line in lines if line.startswith(f"{name}: ")]
        assert own == [f"{name}: one", f"{name}: three"]
    assert lines.count("  two") == 2
    assert "\x1b[2J" not in screen.getvalue()


def test_they_stand_there_at_once(pool, gate):
    screen = FakeTerminal()
    future = pool.submit(jobs.say_and_wait, ["one", "two"], gate)
    future.add_tqdm_callback(init_kwargs={"file": screen, "ncols": 60})
    with waited_for(future):
        until(lambda: {"one", "two"} <= set(printed(screen).splitlines()))
        assert future.running()
        open_gate(gate)


def test_texts_are_lines_of_a_file(executor):
    file = io.StringIO()
    future = executor.submit(jobs.say, ["one", "two"])
    future.add_tqdm_callback(init_kwargs={"file": file, "ncols": 60})
    future.result()
    lines = file.getvalue().splitlines()
    assert lines[:2] == ["one", "two"]
    assert "2" in lines[2]
    assert len(lines) == 3


def test_a_bar_that_comes_with_the_task_shows_them_too(executor):
    file = io.StringIO()
    future = executor.submit(jobs.say, ["one", "two"])
    future.add_tqdm_callback(init_kwargs={"file": file}, triggers={"running"})
    future.result()
    assert file.getvalue().splitlines()[:2] == ["one", "two"]


def test_a_disabled_bar_shows_nothing(executor, capsys):
    future = executor.submit(jobs.say, ["one", "two"])
    future.add_tqdm_callback(init_kwargs={"disable": True})
    future.result()
    assert capsys.readouterr() == ("", "")


class WritingBar(RecordedBar):
    """Like those of a notebook, it writes elsewhere."""

    written: list[str]

    @classmethod
    def write(cls, text):
        cls.written.append(text)


def test_a_bar_of_another_kind_writes_them_as_it_writes(executor):
    WritingBar.written = []
    future = executor.submit(jobs.say, ["one", "two"])
    future.add_tqdm_callback(WritingBar)
    future.add_tqdm_callback(WritingBar)
    future.result()
    assert WritingBar.written == ["one", "two"]


def test_what_is_no_bar_at_all_has_them_printed(executor, capsys):
    future = executor.submit(jobs.say, ["one", "two"])
    future.add_tqdm_callback(RecordedBar)
    future.result()
    assert capsys.readouterr().out == "one\ntwo\n"


def test_rich_prints_them_once_and_as_they_are(executor):
    console = Console(file=io.StringIO(), width=60)
    progress = Progress(console=console)
    future = executor.submit(jobs.say, ["[bold]one[/bold] :warning:", "x" * 100])
    for _ in range(2):
        future.add_rich_callback(progress)
    future.result()
    assert console.file.getvalue() == f"[bold]one[/bold] :warning:\n{'x' * 100}\n"


@pytest.mark.skipif("dask" not in CONCURRENT, reason="the extra progress-executor[dask] is not installed")
def test_on_dask_only_what_is_listened_to_is_sent(gate, monkeypatch):
    from progress_executor._executors import relay

    news, tell = [], relay.Attempt.news

    def note(attempt, *args):
        made = tell(attempt, *args)
        news.append(made)
        return made

    monkeypatch.setattr(relay.Attempt, "news", note)
    with make_executor("dask") as executor:
        future = executor.submit(jobs.say_and_wait, ["one", "two"], gate)
        until(lambda: future.state["n"] == 2)
        until(lambda: future._task._speaks)
        assert all(not made.messages for made in news if made)
        told = said_by(future)
        with waited_for(future):
            until(lambda: told == ["one", "two"])
            open_gate(gate)
    assert told == ["one", "two"]
    messages = [made.messages for made in news if made and made.messages]
    assert [[payload for _, payload, _ in each] for each in messages] == [["one", "two"]]
