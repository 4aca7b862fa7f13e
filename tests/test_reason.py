"""The message of `cancel(msg)`: in the CancelledError that the task gets, and in the one that its future raises."""

import asyncio
import concurrent.futures
import threading
from ast import literal_eval
from pathlib import Path

import pytest

from progress_executor import ProgressGroup, SyncProgressExecutor

from . import jobs
from .conftest import DEADLINE, open_gate, until

LONG = "a message with ä, longer than there is room for it on its way: " + 60 * "äöü "


@pytest.mark.parametrize("message", ["the disk is full", "", LONG], ids=["short", "empty", "long"])
def test_a_running_task_and_who_asks_for_its_result_are_told_why(each_pool, tmp_path, message):
    said = tmp_path / "said"
    future = each_pool.submit(jobs.say_why_it_stops, str(said))
    until(lambda: future.state["n"] > 0)
    assert future.cancel(message)
    for ask in (future.result, future.exception):
        with pytest.raises(concurrent.futures.CancelledError) as caught:
            ask(DEADLINE)
        assert caught.value.args == (message,)
    heard = "".join(literal_eval(said.read_text()))
    assert heard == message.encode()[:248].decode(errors="ignore")


def test_without_a_message_there_is_none(each_pool, tmp_path):
    said = tmp_path / "said"
    future = each_pool.submit(jobs.say_why_it_stops, str(said))
    until(lambda: future.state["n"] > 0)
    future.cancel()
    with pytest.raises(concurrent.futures.CancelledError) as caught:
        future.result(DEADLINE)
    assert caught.value.args == ()
    assert said.read_text() == "()"


def test_the_first_message_counts(each_pool, tmp_path):
    said = tmp_path / "said"
    future = each_pool.submit(jobs.say_why_it_stops, str(said))
    until(lambda: future.state["n"] > 0)
    future.cancel("first")
    future.cancel("second")
    with pytest.raises(concurrent.futures.CancelledError, match=r"^first$"):
        future.result(DEADLINE)
    assert said.read_text() == "('first',)"
    future.cancel("third")
    with pytest.raises(concurrent.futures.CancelledError, match=r"^first$"):
        future.result()


def test_who_waits_for_a_pending_task_is_told_why(each_pool, gate):
    running = [each_pool.submit(jobs.wait_for, gate) for _ in range(6)]
    future = each_pool.submit(jobs.count, 3)
    assert future.cancel("not needed")
    with pytest.raises(concurrent.futures.CancelledError, match=r"^not needed$"):
        future.result(DEADLINE)
    open_gate(gate)
    concurrent.futures.wait(running)


def test_a_group_gives_its_message_to_all_members(each_pool, tmp_path, gate):
    group = ProgressGroup([each_pool.submit(jobs.step_until, gate) for _ in range(4)])
    until(lambda: group.futures[0].state["n"] > 0)
    group.cancel("all of you")
    with pytest.raises(concurrent.futures.CancelledError, match=r"^all of you$"):
        group.result(DEADLINE)
    for future in group.futures:
        with pytest.raises(concurrent.futures.CancelledError, match=r"^all of you$"):
            future.result()


@pytest.mark.parametrize("awaiting", ["future", "watch", "group"])
def test_the_message_of_an_asyncio_task_that_is_cancelled_reaches_the_task(each_pool, tmp_path, awaiting):
    said = tmp_path / "said"

    async def main():
        future = each_pool.submit(jobs.say_why_it_stops, str(said))
        begun = asyncio.Event()

        async def wait():
            begun.set()
            if awaiting == "future":
                await future
            elif awaiting == "watch":
                await future.check_for_progress()
            else:
                await ProgressGroup([future])

        waiting = asyncio.ensure_future(wait())
        await begun.wait()
        while not future.state["n"]:
            await asyncio.sleep(0.001)
        waiting.cancel("the user has left")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(asyncio.CancelledError, match=r"^the user has left$"):
            await future

    asyncio.run(main())
    assert said.read_text() == "('the user has left',)"


def test_a_task_in_the_calling_thread_is_told_why(tmp_path):
    said = tmp_path / "said"
    with SyncProgressExecutor() as executor:
        future = executor.submit(jobs.say_why_it_stops, str(said))
        future.add_progress_callback(lambda old, new: future.cancel("enough"))
        with pytest.raises(concurrent.futures.CancelledError, match=r"^enough$"):
            future.result()
    assert Path(said).read_text() == "('enough',)"


def test_from_many_threads_there_is_one_message(each_pool, tmp_path):
    said = tmp_path / "said"
    future = each_pool.submit(jobs.say_why_it_stops, str(said))
    until(lambda: future.state["n"] > 0)
    threads = [threading.Thread(target=future.cancel, args=(100 * str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(concurrent.futures.CancelledError) as caught:
        future.result(DEADLINE)
    (message,) = caught.value.args
    (heard,) = literal_eval(said.read_text())
    assert len({*message}) == len({*heard}) == 1


def test_a_task_that_returns_all_the_same_keeps_its_value(each_pool, gate):
    future = each_pool.submit(jobs.return_when_cancelled, 5)
    until(lambda: future.state["n"] > 0)
    future.cancel("why not")
    assert future.result(DEADLINE) == 5


@pytest.mark.parametrize("message", [1, b"why", ValueError("why")])
def test_what_is_no_text_is_no_message(executor, message):
    future = executor.submit(jobs.count, 3)
    with pytest.raises(TypeError, match="str"):
        future.cancel(message)
    assert future.result() == 3
