"""Event loops of all kinds, blocked, timed out and gone."""

import asyncio
import contextlib
import sys
import threading
import time

import pytest

from . import jobs
from .conftest import CONCURRENT, DEADLINE, KINDS, make_executor, open_gate, until


def loop_factories():
    yield pytest.param(asyncio.new_event_loop, id="asyncio")
    try:
        import uvloop
    except ImportError:
        yield pytest.param(None, id="uvloop", marks=pytest.mark.skip("uvloop is not installed"))
    else:
        yield pytest.param(uvloop.new_event_loop, id="uvloop")


@pytest.fixture(params=loop_factories())
def new_event_loop(request):
    return request.param


@pytest.fixture
def run(new_event_loop):
    """asyncio.run, with each kind of loop."""

    def run(coroutine):
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(coroutine)

    return run


def watch(future):
    states = []
    future.add_progress_callback(lambda old, new: states.append(new))
    return states


@pytest.mark.parametrize("seconds", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_loop_that_was_blocked_is_told_the_newest_state_and_no_backlog(run, gate, seconds):
    """Of tasks in all executors at once, as most of it is waiting."""

    async def told_in_one_turn(states):
        while not states:
            await asyncio.sleep(0)
        return list(states)

    async def main(executors):
        futures = [executor.submit(jobs.step_until, gate) for executor in executors]
        told = [watch(future) for future in futures]
        tasks = [asyncio.create_task(future.check_for_progress()) for future in futures]
        while not all(told):
            await asyncio.sleep(0.01)
        for states in told:
            del states[:]
        before = [future.state["n"] for future in futures]
        time.sleep(seconds)
        until(lambda: all(future.state["n"] > n + 10 for future, n in zip(futures, before, strict=True)))
        now = [future.state["n"] for future in futures]
        assert not any(told)
        for states, n in zip(await asyncio.gather(*map(told_in_one_turn, told)), now, strict=True):
            assert len(states) == 1
            assert states[0]["n"] >= n
        open_gate(gate)
        assert await asyncio.gather(*tasks) == [states[-1]["n"] for states in told]

    with contextlib.ExitStack() as stack:
        run(main([stack.enter_context(make_executor(kind)) for kind in CONCURRENT]))


def test_a_timeout_cancels_the_task_and_is_told_when_that_has_stopped(run, pool, gate):
    async def main():
        futures = [pool.submit(jobs.step_until, gate) for _ in range(2)]
        told = [watch(future) for future in futures]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(futures[0].check_for_progress(), 0.2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await futures[1]
        while not all(states and states[-1]["status"] == "cancelled" for states in told):
            await asyncio.sleep(0.01)
        assert all(future.cancelled() for future in futures)

    run(main())


def test_a_value_that_a_timed_out_task_returns_all_the_same_is_kept(run, pool):
    async def main():
        future = pool.submit(jobs.return_when_cancelled, "kept")
        while future.state["status"] == "pending":
            await asyncio.sleep(0.001)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future.check_for_progress(), 0.2)
        assert await future == "kept"

    run(main())


def test_a_shield_keeps_the_task_from_a_timeout(run, pool, gate):
    async def main():
        future = pool.submit(jobs.step_until, gate)
        task = asyncio.create_task(future.check_for_progress())
        while not future.state["n"]:
            await asyncio.sleep(0.001)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.1)
        assert not future.cancel_requested()
        open_gate(gate)
        assert await task > 0

    run(main())


def test_gather_and_wait_take_futures_as_they_are(run, executor):
    async def main():
        futures = [executor.submit(jobs.count, n) for n in range(5)]
        assert await asyncio.gather(*futures[:3]) == [0, 1, 2]
        tasks = [asyncio.create_task(future) for future in futures]
        done, pending = await asyncio.wait(tasks)
        assert not pending
        assert {task.result() for task in done} == set(range(5))

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks come with 3.12")
def test_eager_tasks_drive_futures(executor):  # in asyncio's own loop: uvloop's hands the factory arguments that it refuses
    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        future, other = executor.submit(jobs.count_slowly, 20, 0.01), executor.submit(jobs.count, 3)
        states = watch(future)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(future)
            second = group.create_task(other.check_for_progress())
        assert (first.result(), second.result()) == (20, 3)
        assert states[-1] == {"n": 20, "total": 20, "status": "done"}
        assert len(states) > 2

    asyncio.run(main())


def test_run_in_executor_is_awaited_and_its_bar_is_closed(run, executor):
    closed = []

    class Bar:
        def set_postfix_str(self, text, refresh):
            pass

        def refresh(self):
            pass

        def close(self):
            closed.append((self.n, self.total))

    async def main():
        submit = executor.submit

        def submit_and_show(*args):
            future = submit(*args)
            future.add_tqdm_callback(Bar)
            return future

        executor.submit = submit_and_show
        assert await asyncio.get_running_loop().run_in_executor(executor, jobs.count, 7) == 7

    run(main())
    del executor.submit
    executor.submit(jobs.count, 1).result()  # whoever waits next
    assert closed == [(7, 7)]


def test_a_sibling_that_fails_cancels_the_others(run, pool, gate):
    async def main():
        future = pool.submit(jobs.step_until, gate)
        states = watch(future)
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as tg:
                tg.create_task(future)
                while not future.state["n"]:
                    await asyncio.sleep(0.001)
                tg.create_task(pool.submit(jobs.fail))
        async with asyncio.timeout(DEADLINE):
            while not (states and states[-1]["status"] == "cancelled"):
                await asyncio.sleep(0.001)
        assert future.cancelled()

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_two_loops_may_await_one_future(kind, run, gate):
    with make_executor(kind, 1) as executor:
        future = executor.submit(jobs.step_until, gate)
        states = watch(future)

        async def main():
            async with asyncio.timeout(DEADLINE):
                return await future

        results = []
        threads = [threading.Thread(target=lambda: results.append(run(main()))) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: states)
        open_gate(gate)
        for thread in threads:
            thread.join()
        assert results == [future.result()] * 2
        executor.shutdown()
        assert [state["status"] for state in states].count("done") == 1


@pytest.mark.parametrize("then", ["another loop awaits it", "a thread waits for it", "the executor is left"])
@pytest.mark.parametrize("kind", CONCURRENT)
def test_a_loop_that_is_closed_with_tasks_running_takes_nothing_along(kind, then, new_event_loop, run, gate):
    with make_executor(kind) as executor:
        future, other = executor.submit(jobs.step_until, gate), executor.submit(jobs.step_until, gate)
        states, states_of_other = watch(future), watch(other)

        async def until_told():
            while not (states and states_of_other):
                await asyncio.sleep(0.001)

        loop = new_event_loop()
        tasks = [loop.create_task(future.check_for_progress()), loop.create_task(other)]
        loop.run_until_complete(until_told())
        loop.close()
        for task in tasks:
            task._log_destroy_pending = False  # it never ends
        assert not future.cancel_requested()
        before, told = future.state["n"], len(states)
        until(lambda: future.state["n"] > before and other.state["n"])
        assert len(states) == told
        open_gate(gate)
        if then == "another loop awaits it":

            async def main():
                return await future, await other

            assert all(run(main()))
        elif then == "a thread waits for it":
            assert future.result(DEADLINE)
            assert other.result(DEADLINE)
        else:
            executor.shutdown()
        for each, told in (future, states), (other, states_of_other):
            assert told[-1] == each.state
            assert [state["status"] for state in told].count("done") == 1
            assert each.state == {"n": each.result(), "total": None, "status": "done"}
