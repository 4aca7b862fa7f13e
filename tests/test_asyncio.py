"""Delivery in an event loop: awaiting, the loop_poller, cancellation of the asyncio task, leaving with `async with`."""

import asyncio
import concurrent.futures
import gc
import os
import signal
import threading
import time
import weakref

import pytest

from progress_executor import SyncProgressExecutor, ThreadPoolProgressExecutor

from . import jobs
from .conftest import KINDS, make_executor, open_gate
from .test_futures import watch


async def until_async(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_future_can_be_awaited_in_every_way(executor):
    async def main():
        assert await executor.submit(jobs.count, 1) == 1
        assert await executor.submit(jobs.count, 2).check_for_progress() == 2
        async with asyncio.TaskGroup() as tg:
            as_task = tg.create_task(executor.submit(jobs.count, 3))
            checking = tg.create_task(executor.submit(jobs.count, 4).check_for_progress(interval=0.01))
        assert (as_task.result(), checking.result()) == (3, 4)
        assert await asyncio.gather(*(executor.submit(jobs.count, n) for n in range(5))) == list(range(5))
        assert await asyncio.wait_for(executor.submit(jobs.count, 5), 30) == 5
        async with asyncio.timeout(30):
            assert await asyncio.wrap_future(executor.submit(jobs.count, 6)) == 6
        assert await asyncio.get_running_loop().run_in_executor(executor, jobs.add, 6) == 7

    asyncio.run(main())


def test_a_future_passes_for_a_coroutine(executor):
    future = executor.submit(jobs.count, 1)
    assert asyncio.iscoroutine(future)
    future.close()
    assert future.result() == 1


def test_several_tasks_may_await_one_future(executor):
    async def main():
        future = executor.submit(jobs.count_slowly, 20, 0.01)
        async with asyncio.TaskGroup() as tg:
            tasks = [tg.create_task(future) for _ in range(3)] + [tg.create_task(future.check_for_progress())]
        assert [task.result() for task in tasks] == [20] * 4
        assert await future == 20
        assert await asyncio.create_task(future) == 20

    asyncio.run(main())


def test_what_the_task_raises_is_raised_where_it_is_awaited(executor):
    async def main():
        future = executor.submit(jobs.count_then_fail, 3)
        states = watch(future)
        with pytest.raises(ValueError, match="after counting"):
            await future
        assert states[-1][1] == {"n": 3, "total": 3, "status": "failed"}

    asyncio.run(main())


@pytest.mark.parametrize("drive", ["await", "check", "task"])
def test_callbacks_come_in_the_loops_thread_and_end_with_the_final_state(executor, drive):
    async def main():
        future = executor.submit(jobs.count_slowly, 30, 0.01)
        states, threads = watch(future), set()
        future.add_progress_callback(lambda old, new: threads.add(threading.get_ident()))
        if drive == "await":
            await future
        elif drive == "check":
            await future.check_for_progress(0.02)
        else:
            await asyncio.create_task(future)
        assert states[-1][1] == {"n": 30, "total": 30, "status": "done"}
        assert len(states) > 1
        assert threads == {threading.get_ident()}

    asyncio.run(main())


def test_who_cancels_many_in_the_loops_thread_does_not_fill_its_pipe(local_pool, gate):
    async def main():
        blockers = [local_pool.submit(jobs.wait_for, gate) for _ in range(2)]
        futures = [local_pool.submit(jobs.count, 1) for _ in range(100)]
        tasks = [asyncio.create_task(future.check_for_progress()) for future in futures]
        await asyncio.sleep(0)
        loop, woken_by = asyncio.get_running_loop(), []
        wake = loop.call_soon_threadsafe

        def note_and_wake(*args):
            woken_by.append(threading.get_ident())
            return wake(*args)

        loop.call_soon_threadsafe = note_and_wake
        for future in futures[50:]:  # none of which has left for a worker
            assert future.cancel()
        done, _ = await asyncio.wait(tasks[50:])
        assert all(task.cancelled() for task in done)
        open_gate(gate)
        await asyncio.gather(*tasks[:50], *blockers)
        assert threading.get_ident() not in woken_by
        assert woken_by  # by the pool's

    asyncio.run(main())


def test_callbacks_added_while_it_is_awaited_are_called(pool, gate):
    async def main():
        future = pool.submit(jobs.report_and_wait, 1, 2, "here", gate)
        waiting = asyncio.create_task(future)
        await until_async(lambda: future.state["n"] == 1)
        states = watch(future)
        await until_async(lambda: states)
        open_gate(gate)
        await waiting
        assert [new["status"] for old, new in states] == ["here", "done"]

    asyncio.run(main())


def test_the_loop_runs_while_a_task_is_awaited(pool, gate):
    async def main():
        waiting = asyncio.create_task(pool.submit(jobs.wait_for, gate).check_for_progress())
        await asyncio.sleep(0)
        open_gate(gate)
        assert await waiting == "waited"

    asyncio.run(main())


def test_cancelling_the_awaiting_task_cancels_the_future(pool, gate, tmp_path):
    async def main():
        cleaned = tmp_path / "cleaned"
        future = pool.submit(jobs.clean_up_when_cancelled, gate, str(cleaned))
        states = watch(future)
        task = asyncio.create_task(future.check_for_progress())
        await until_async(lambda: future.state["n"] > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert future.cancel_requested()
        # Nobody awaits it any more: the loop delivers the end all the same.
        await until_async(lambda: states and states[-1][1]["status"] == "cancelled")
        assert future.cancelled()
        assert cleaned.read_text() == "except finally"

    asyncio.run(main())


def test_awaiting_a_cancelled_future_raises_asyncios_error(pool, gate):
    async def main():
        future = pool.submit(jobs.step_until, gate)
        task = asyncio.create_task(future)
        await until_async(lambda: future.state["n"] > 0)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_what_the_loop_could_not_deliver_is_delivered_by_who_leaves(kind, gate):
    with make_executor(kind) as executor:
        future = executor.submit(jobs.step_until, gate)
        states = watch(future)

        async def main():
            task = asyncio.create_task(future)
            await until_async(lambda: future.state["n"] > 0)
            task.cancel()

        asyncio.run(main())
    assert states[-1][1]["status"] == "cancelled"
    assert future.cancelled()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_what_the_loop_could_not_deliver_is_delivered_by_who_waits_next(kind, gate):
    with make_executor(kind) as executor:
        future = executor.submit(jobs.step_until, gate)
        states = watch(future)

        async def main():
            task = asyncio.create_task(future)
            await until_async(lambda: future.state["n"] > 0)
            task.cancel()

        asyncio.run(main())
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
        assert states[-1][1]["status"] == "cancelled"


@pytest.mark.parametrize("kind", KINDS)
def test_async_with_delivers_while_it_leaves(kind):
    async def main():
        async with make_executor(kind) as executor:
            states = watch(executor.submit(jobs.count_slowly, 30, 0.01))
        assert states[-1][1]["status"] == "done"

    asyncio.run(main())


def test_async_with_does_not_block_the_loop(gate):
    async def main():
        turns = 0

        async def turn():
            nonlocal turns
            while turns < 20:
                turns += 1
                await asyncio.sleep(0)
            open_gate(gate)

        async with ThreadPoolProgressExecutor(1) as executor:
            executor.submit(jobs.wait_for, gate)
            turning = asyncio.create_task(turn())
        assert turns == 20
        await turning

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_cancelling_who_leaves_cancels_the_tasks(kind, gate):
    async def main():
        futures = []

        async def leave():
            async with make_executor(kind) as executor:
                futures.extend(executor.submit(jobs.step_until, gate) for _ in range(8))

        leaving = asyncio.create_task(leave())
        await until_async(lambda: futures and futures[0].state["n"] > 0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert all(future.cancelled() for future in futures)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_with_block_left_by_cancellation_cancels_the_tasks(kind, gate):
    async def main():
        futures = []

        async def body():
            with make_executor(kind) as executor:
                futures.extend(executor.submit(jobs.step_until, gate) for _ in range(8))
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await until_async(lambda: futures and futures[0].state["n"] > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(future.cancelled() for future in futures)

    asyncio.run(main())


def test_a_thread_pool_can_be_the_loops_default_executor():
    async def main():
        loop = asyncio.get_running_loop()
        executor = ThreadPoolProgressExecutor(2)
        loop.set_default_executor(executor)
        assert await asyncio.to_thread(jobs.add, 1, 2) == 3
        assert await loop.run_in_executor(None, jobs.add, 1) == 2

    asyncio.run(main())


def test_sync_tasks_let_the_loop_do_what_fell_due_before_the_next_starts():
    async def main():
        order = []
        with SyncProgressExecutor() as executor:
            loop = asyncio.get_running_loop()

            def work(i):
                order.append(i)
                if i == 0:  # what falls due while it runs
                    loop.call_at(loop.time(), order.append, "due")

            futures = [executor.submit(work, i) for i in range(3)]
            await asyncio.gather(*(asyncio.create_task(future.check_for_progress()) for future in futures))
        assert order == [0, "due", 1, 2]

    asyncio.run(main())


def test_a_timeout_that_fell_due_while_a_sync_task_ran_is_heard_of_before_its_end():
    async def main():
        with SyncProgressExecutor() as executor, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await executor.submit(time.sleep, 0.05)

    asyncio.run(main())


def test_a_loop_is_forgotten_when_nothing_is_watched(executor):
    from progress_executor._monitor import _loop_pollers

    async def main():
        futures = [executor.submit(jobs.count, 3) for _ in range(3)]
        await asyncio.gather(*futures)
        assert asyncio.get_running_loop() not in _loop_pollers

    asyncio.run(main())


def test_watching_a_thousand_pending_futures_samples_the_running_ones_only(gate, monkeypatch):
    from progress_executor._tasks import Task

    sampled = []
    monkeypatch.setattr(Task, "snapshot", lambda self, snapshot=Task.snapshot: (sampled.append(self), snapshot(self))[1])

    async def main():
        with ThreadPoolProgressExecutor(2) as executor:
            futures = [executor.submit(jobs.step_until, gate) for _ in range(1000)]
            for future in futures:
                future.add_progress_callback(lambda old, new: None)
            tasks = [asyncio.create_task(future.check_for_progress(0.01)) for future in futures]
            await until_async(lambda: len(sampled) > 20)
            assert len(set(sampled)) <= 2
            open_gate(gate)
            await asyncio.gather(*tasks)

    asyncio.run(main())


def test_the_end_of_the_loop_waits_for_who_leaves(gate):
    states = []

    async def leave():
        async with ThreadPoolProgressExecutor(1) as executor:
            states.append(watch(executor.submit(jobs.step_until, gate)))

    async def main():
        asyncio.get_running_loop().leaving = asyncio.create_task(leave())
        await until_async(lambda: states and states[0])

    asyncio.run(main())
    assert states[0][-1][1]["status"] == "cancelled"


def test_a_short_interval_is_kept_beside_a_long_one(pool, gate):
    async def main():
        slow, fast = pool.submit(jobs.step_until, gate), pool.submit(jobs.step_until, gate)
        states = watch(fast)
        watch(slow)
        tasks = [asyncio.create_task(slow.check_for_progress(1000))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(fast.check_for_progress(0.01)))
        await until_async(lambda: len(states) > 3)
        open_gate(gate)
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_task_cancelled_before_its_first_step_cancels_the_future_and_is_told(pool, gate):
    async def main():
        future = pool.submit(jobs.step_until, gate)
        await until_async(lambda: future.state["n"] > 0)
        states = []
        adder = threading.Thread(target=lambda: states.append(watch(future)))
        adder.start()
        adder.join()
        for awaitable in (future, future.check_for_progress()):
            task = asyncio.create_task(awaitable)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until_async(lambda: states[0] and states[0][-1][1]["status"] == "cancelled")

    asyncio.run(main())


def test_loops_are_not_kept_alive():
    loops = []

    async def main():
        loops.append(weakref.ref(asyncio.get_running_loop()))
        with ThreadPoolProgressExecutor(2) as executor:
            await asyncio.gather(*(executor.submit(jobs.count, 3) for _ in range(3)))
        with SyncProgressExecutor() as executor:
            await asyncio.gather(*(executor.submit(jobs.count, 3) for _ in range(3)))

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert not any(loop() for loop in loops)


def test_a_failed_sync_task_that_was_asked_for_is_not_reported_again(caplog):
    async def main():
        async with SyncProgressExecutor() as executor:
            future = executor.submit(jobs.fail)
        with pytest.raises(ValueError, match="on purpose"):
            await future

    asyncio.run(main())
    gc.collect()
    assert not caplog.text


@pytest.mark.parametrize("handled_by", ["loop", "signal"])
def test_sigterm_is_heard_when_a_sync_task_has_ended_unless_its_handler_is_pythons_own(handled_by):
    def task(progress):
        for n in progress(range(100)):
            if n == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    async def main():
        async with SyncProgressExecutor() as executor:
            future = executor.submit(task)
            if handled_by == "loop":
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, future.cancel)
            else:
                signal.signal(signal.SIGTERM, lambda *_: future.cancel())
            await asyncio.wait([asyncio.create_task(future)])
            return future.state

    before = signal.getsignal(signal.SIGTERM)
    try:
        state = asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)
    n, status = (100, "done") if handled_by == "loop" else (4, "cancelled")
    assert state == {"n": n, "total": 100, "status": status}
