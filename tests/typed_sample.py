"""A user's program over the whole public API, for type checkers to read and for Python to run."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import asyncio
import concurrent.futures
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from typing import Any, Literal, assert_type

from progress_executor import (
    IMPLEMENTATION,
    GroupState,
    ProcessPoolProgressExecutor,
    ProgressExecutor,
    ProgressFuture,
    ProgressGroup,
    ProgressState,
    SyncProgressExecutor,
    ThreadPoolProgressExecutor,
    Updater,
    current_progress,
)

assert_type(IMPLEMENTATION, Literal["cython", "python"])


def count(n: int, progress: Updater) -> int:
    for item in progress(range(n)):
        assert_type(item, int)
    return n


def text(value: object) -> str:
    return str(value)


def first(progress: Updater, n: int) -> int:
    return n


def by_name(n: int, m: int = 0, *, progress: Updater) -> int:
    return n


def optional(n: int, progress: Updater | None = None, m: int = 0) -> int:
    return n


class Job:
    def __init__(self, n: int, progress: Updater) -> None:
        self.n = n

    def run(self, n: int, progress: Updater) -> int:
        return n


def every_call(progress: Updater) -> None:
    assert_type(progress([1, 2]), Iterator[int])
    assert_type(progress((name for name in ("a", "b")), total=2), Iterator[str])
    assert_type(progress("word", None), Iterator[str])
    assert_type(list(progress({"a": 1.5}.items(), 1)), list[tuple[str, float]])
    assert_type(progress(1), None)
    assert_type(progress(), None)
    assert_type(progress(0.5), None)
    assert_type(progress.update(), None)
    assert_type(progress.update(True), None)
    progress.update(Fraction(1, 2))

    assert_type(progress.n, int | float)
    assert_type(progress.total, int | float | None)
    assert_type(progress.status, str)
    assert_type(progress.cancelled, bool)
    progress.n = 1
    progress.n = 0.5
    progress.total = None
    progress.total = 10
    progress.status = "halfway"

    progress.reset()
    progress.reset(total=20)
    progress.refresh()
    progress.check()
    assert_type(progress.log("halfway"), None)
    assert_type(current_progress(), Updater)
    with progress.sub(3) as part:
        assert_type(part, Updater)
        assert_type(part.sub(Fraction(1, 2), total=2.5), Updater)
    with progress as same:
        assert_type(same, Updater)
    progress.close()


def changed(old: ProgressState, new: ProgressState) -> None:
    assert_type(old["n"], int | float)
    assert_type(new["total"], int | float | None)
    assert_type(new["status"], str)


def changed_in_group(old: GroupState, new: GroupState) -> None:
    assert_type(new["pending"], int)


class Bar:
    """What a user may give in place of `tqdm.tqdm`."""

    n: float = 0
    total: float | None = None

    def __init__(self, desc: str = "") -> None:
        self.desc = desc

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None: ...

    def refresh(self) -> None: ...

    def close(self) -> None: ...


def every_method(executor: ProgressExecutor) -> None:
    future = executor.submit(count, 3)
    assert_type(future, ProgressFuture[int])
    future.add_progress_callback(changed)
    future.remove_progress_callback(changed)
    future.add_log_callback(print)
    future.remove_log_callback(print)
    future.add_tqdm_callback(Bar)
    future.add_tqdm_callback(Bar, {"desc": "three"}, ["now", "running"])
    future.add_tqdm_callback(Bar, init_kwargs={"desc": "three"}, triggers={"cancelled"})
    future.add_tqdm_callback(Bar, trigger=("running",))
    assert_type(future.state, ProgressState)
    for state in future.states():
        assert_type(state, ProgressState)
    assert_type(next(future.states(interval=1)), ProgressState)
    assert_type(future.result(), int)
    assert_type(future.result(timeout=1), int)
    assert_type(future.exception(), BaseException | None)
    assert_type(future.cancel_requested(), bool)
    assert_type(future.cancel(), bool)
    assert_type(future.cancel("not needed"), bool)
    assert_type(future.paused, bool)
    assert_type(future.set_deadline(60), None)
    future.set_deadline(timeout=60, stall=0.5)
    future.set_deadline(None, None)
    assert_type(future.running(), bool)
    assert_type(future.done(), bool)

    def done(ended: concurrent.futures.Future[int]) -> None:
        assert_type(ended.result(), int)

    future.add_done_callback(done)

    assert_type(executor.submit(text, value=3).result(), str)
    assert_type(executor.map(count, [1, 2]), Iterator[int])
    assert_type(executor.map(text, [1, 2], timeout=60, chunksize=1), Iterator[str])

    assert_type(executor.submit(count, n=3), ProgressFuture[int])
    assert_type(executor.submit(count, 3, progress=Updater()), ProgressFuture[int])
    assert_type(executor.submit(first, n=3), ProgressFuture[int])
    assert_type(executor.submit(by_name, 3, m=4), ProgressFuture[int])
    assert_type(executor.submit(optional, 3), ProgressFuture[int])
    assert_type(executor.submit(Job, 3).result().n, int)
    assert_type(executor.submit(Job(3, Updater()).run, 3), ProgressFuture[int])
    assert_type(executor.submit(partial(count, 3)), ProgressFuture[int])
    assert_type(executor.submit(len, "three"), ProgressFuture[int])
    executor.submit(print, end="")

    futures = [executor.submit(count, n) for n in (1, 2)]
    assert_type(futures, list[ProgressFuture[int]])
    for ended in concurrent.futures.as_completed(futures):
        assert_type(ended.result(), int)
    assert_type(concurrent.futures.wait(futures).done.pop().result(), int)


async def awaited(executor: ProgressExecutor) -> None:
    assert_type(await executor.submit(count, 3), int)
    assert_type(await executor.submit(count, 3).check_for_progress(), int)
    assert_type(await executor.submit(count, 3).check_for_progress(interval=0.5), int)
    async for state in executor.submit(count, 3).states():
        assert_type(state, ProgressState)
    async for of_group in ProgressGroup([executor.submit(count, 3)]).states(interval=0.5):
        assert_type(of_group, GroupState)
    assert_type(await asyncio.wrap_future(executor.submit(count, 3)), int)
    assert_type(await asyncio.get_running_loop().run_in_executor(executor, text, 3), str)
    async with asyncio.TaskGroup() as group:
        from_coroutine = group.create_task(executor.submit(count, 3).check_for_progress())
        assert_type(from_coroutine, asyncio.Task[int])
        from_future = group.create_task(executor.submit(text, 3))
        assert_type(from_future, asyncio.Task[str])
    assert_type(await asyncio.gather(executor.submit(count, 3), executor.submit(text, 3)), tuple[int, str])


async def left_without_blocking() -> None:
    async with ThreadPoolProgressExecutor(1) as threads:
        assert_type(threads, ThreadPoolProgressExecutor)
        await awaited(threads)
    async with ProcessPoolProgressExecutor(1) as processes:
        assert_type(processes, ProcessPoolProgressExecutor)
        await awaited(processes)
    async with SyncProgressExecutor() as sync:
        assert_type(sync, SyncProgressExecutor)
        await awaited(sync)


async def every_mistake(executor: ProgressExecutor) -> None:
    """Not called: each of these is an error to a type checker, and it is one if that finds none."""
    future = executor.submit(text, 3)
    executor.submit(len, 3)  # type: ignore[arg-type]
    executor.submit(len)  # type: ignore[arg-type]
    executor.submit(len, "three", "four")  # type: ignore[arg-type]
    executor.submit(text, values=3)  # type: ignore[arg-type]
    executor.submit("text")  # type: ignore[call-overload]
    number: int = future.result()  # type: ignore[assignment]
    numbers: ProgressFuture[int] = future  # type: ignore[assignment]
    number = next(Updater()(["three"]))  # type: ignore[assignment]
    list(Updater()(3))  # type: ignore[call-overload]
    Updater().update("three")  # type: ignore[arg-type]
    Updater().sub("three")  # type: ignore[arg-type]
    Updater().log(3)  # type: ignore[arg-type]
    future.add_progress_callback(text)  # type: ignore[arg-type]
    future.add_progress_callback(changed_in_group)  # type: ignore[arg-type]
    future.add_log_callback(changed)  # type: ignore[arg-type]
    future.add_tqdm_callback(triggers=["later"])  # type: ignore[list-item]
    number = next(future.states())  # type: ignore[assignment]
    future.set_deadline("three")  # type: ignore[arg-type]
    ProgressGroup([future]).add_progress_callback(text)  # type: ignore[arg-type]
    ProgressGroup([text])  # type: ignore[arg-type]
    number = await future  # type: ignore[assignment]
    async with asyncio.TaskGroup() as group:
        group.create_task(ProgressGroup([future]))  # type: ignore[arg-type]
    print(number, numbers)


def initialize(*values: Any) -> None: ...


def main() -> None:
    with ThreadPoolProgressExecutor(2, "name", initialize, (1,)) as threads:
        assert_type(threads, ThreadPoolProgressExecutor)
        assert_type(threads.submit(count, 3).result(), int)
        every_method(threads)
    with ProcessPoolProgressExecutor(2, None, initialize, (1,), max_tasks_per_child=None) as processes:
        assert_type(processes, ProcessPoolProgressExecutor)
        assert_type(processes.submit(count, 3).result(), int)
        every_method(processes)
    with SyncProgressExecutor() as sync:
        assert_type(sync, SyncProgressExecutor)
        assert_type(sync.submit(count, 3).result(), int)
        every_method(sync)
    with ThreadPoolProgressExecutor(2) as threads:
        group = ProgressGroup(threads.submit(count, n) for n in range(3))
        assert_type(group, ProgressGroup[int])
        group.add_progress_callback(lambda old, new: assert_type(new, GroupState))
        group.add_progress_callback(changed_in_group)
        group.add_progress_callback(changed)
        group.remove_progress_callback(changed_in_group)
        group.add_tqdm_callback(init_kwargs={"disable": True})
        assert_type(group.result(timeout=60), list[int])
        assert_type(group.state, GroupState)
        for state in group.states(0.5):
            assert_type(state, GroupState)
        assert_type(group.state["cancelled"], int)
        assert_type(group.cancel(), bool)
        assert_type(group.cancel(msg="not needed"), bool)
        assert_type(group.pause(), bool)
        group.add_log_callback(print)
        assert_type(group.resume(), bool)
        assert_type(group.paused, bool)
        assert_type(group.futures[0].pause(), bool)
        assert_type(group.futures[0].resume(), bool)
        assert_type(group.done(), bool)
        assert_type(group.futures, tuple[ProgressFuture[int], ...])
    asyncio.run(left_without_blocking())

    executor: ProgressExecutor = SyncProgressExecutor()
    executor.shutdown(wait=False, cancel_futures=True)
    standard: concurrent.futures.Executor = executor
    standard.shutdown()
    every_call(Updater())


if __name__ == "__main__":
    main()
