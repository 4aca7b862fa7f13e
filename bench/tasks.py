"""Scenarios with whole executors: tasks per second, memory, the event loop's costs, latencies.

Run as a script it answers for the form of the package that its environment picks: see `timing.Remote`.
"""

import asyncio
import contextlib
import gc
import os
import random
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from time import perf_counter
from typing import Any, TextIO

import jobs
from peers import OURS, Run, map_in_chunks, open_pool, runner
from timing import serve

from progress_executor import ProgressExecutor, ProgressGroup, ProgressState, ThreadPoolProgressExecutor

WORKERS = 2
ONE_CORE = "threads on one core"


def make(kind: str, workers: int = WORKERS) -> Any:
    return open_pool(OURS, kind, workers)


# Tasks per second. On which core a pool's threads and processes come to lie decides more than any of the contenders, and
# stays so while the pool lives: each sample has a pool of its own. Starting the pool is not in the figure.


@contextmanager
def on_one_core() -> Iterator[None]:
    """For the calling thread and those that it starts meanwhile; where the system offers it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def warm(name: str, kind: str, workers: int = WORKERS) -> Iterator[tuple[Any, Run]]:
    """A pool, all of whose workers have run a task, and how to have it run more.

    With `ONE_CORE`, threads, of which one runs at a time anyway, have one: what they cost does not depend then on where
    they come to lie.
    """
    with on_one_core() if kind == ONE_CORE else nullcontext(), open_pool(name, kind.split()[0], workers) as pool:
        run = runner(name, pool)
        for patience in (0.01, 0.1, 0.3, 1, 3):
            if len(set(run(partial(jobs.who, patience), workers))) == workers:
                break
        else:
            raise RuntimeError(f"fewer workers than {workers}")
        for _ in range(20):
            run(jobs.nothing, 1)
        gc.collect()
        yield pool, run


def _one_by_one(run: Run, count: int) -> None:
    for _ in range(count):
        run(jobs.nothing, 1)


def _beside_computing(run: Run, job: Callable[[], None], count: int) -> None:
    """The main thread computes, another one submits and waits."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.extend(run(job, count)))
    thread.start()
    number = 0
    while thread.is_alive():
        for i in range(1000):
            number += i
    if len(done) != count:
        raise RuntimeError("the tasks have failed")


def _there_and_back(run: Run, size: int, count: int) -> None:
    job = partial(jobs.same, bytes(size))
    for _ in range(count):
        run(job, 1)


SCENARIOS: dict[str, Callable[[Run, int], Any]] = {
    "no-op": lambda run, count: run(jobs.nothing, count),
    "one by one": _one_by_one,
    "1 ms": lambda run, count: run(jobs.millisecond, count),
    "no-op, caller computes": lambda run, count: _beside_computing(run, jobs.nothing, count),
    "1 ms, caller computes": lambda run, count: _beside_computing(run, jobs.millisecond, count),
    "1 MB": lambda run, count: _there_and_back(run, 1 << 20, count),
    "50 MB": lambda run, count: _there_and_back(run, 50 << 20, count),
}


def rate(name: str, kind: str, scenario: str, count: int, workers: int = WORKERS) -> float:
    """Tasks per second."""
    with warm(name, kind, workers) as (pool, run):
        start = perf_counter()
        if scenario == "map":
            map_in_chunks(name, pool, count)
        elif scenario == "awaited":
            asyncio.run(_awaited(pool, name == OURS, count))
        else:
            SCENARIOS[scenario](run, count)
        return count / (perf_counter() - start)


async def _wrapped(future: Any) -> Any:
    return await asyncio.wrap_future(future)


async def _awaited(executor: Any, ours: bool, count: int) -> None:
    """Each in an asyncio task of its own."""
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            future = executor.submit(jobs.nothing)
            group.create_task(future.check_for_progress() if ours else _wrapped(future))


# Memory


def memory(name: str, kind: str, count: int = 1000) -> float:
    """Bytes that each pending task takes, with what the pool keeps of it."""
    with warm(name, kind, 1) as (executor, _):
        # A process pool takes some tasks before their turn: let them be others than those that are weighed.
        held = executor.submit(time.sleep, 1)
        others = [executor.submit(time.sleep, 0) for _ in range(10)]
        time.sleep(0.2)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            futures = [executor.submit(jobs.nothing) for _ in range(count)]
            gc.collect()
            after = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        if held.done():
            raise RuntimeError("the tasks that were weighed were not pending any more")
        for future in others + futures:
            future.cancel()
    return (after - before) / count


# What the event loop pays


def _look(_: ProgressState, __: ProgressState) -> None:
    pass


WINDOWS = 5


def loop_cost(watched_tasks: int, seconds: float, interval: float, reporting: bool, grouped: bool = False) -> float:
    """CPU µs of the loop's thread per interval, three tasks running and the others pending.

    All of them are watched, each by itself or as one group.
    """
    stop = threading.Event()

    def report(progress: Any) -> None:
        while not stop.wait(0.002):
            progress.update(1)

    def keep_quiet(progress: Any) -> None:
        stop.wait()

    async def run() -> float:
        with ThreadPoolProgressExecutor(3) as executor:
            async with asyncio.TaskGroup() as group:
                futures = [executor.submit(report if reporting else keep_quiet) for _ in range(watched_tasks)]
                watched = [ProgressGroup(futures)] if grouped else futures
                for source in watched:
                    source.add_progress_callback(_look)
                    group.create_task(source.check_for_progress(interval))
                await asyncio.sleep(0.3)
                gc.collect()
                share = await share_of_loop(seconds)
                stop.set()
                for source in watched[3:]:
                    source.remove_progress_callback(_look)
            return share * interval * 1e6

    return asyncio.run(run())


async def share_of_loop(seconds: float) -> float:
    """How much of a core the loop's thread uses: the median of some windows."""
    shares = []
    for _ in range(WINDOWS):
        start = time.thread_time(), perf_counter()
        await asyncio.sleep(seconds / WINDOWS)
        shares.append((time.thread_time() - start[0]) / (perf_counter() - start[1]))
    return statistics.median(shares)


@contextmanager
def terminal() -> Iterator[TextIO]:
    """A pseudo-terminal of 24 rows on which nobody looks."""
    import pty
    import termios

    def drain() -> None:
        with contextlib.suppress(OSError):  # Linux's end of file
            while os.read(ours, 1 << 16):
                pass

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    drainer = threading.Thread(target=drain)
    drainer.start()
    try:
        with open(theirs, "w") as file:
            yield file
    finally:
        drainer.join()
        os.close(ours)


def bars_share(count: int, seconds: float) -> float:
    """Percent of a core that the loop's thread uses for so many bars on a terminal, all of which move ten times a second."""
    import tqdm

    progresses: list[Any] = []
    stop = threading.Event()

    def hand_over(progress: Any) -> None:
        progress.total = 10**6
        progresses.append(progress)
        stop.wait()

    def move() -> None:
        while not stop.wait(0.1):
            for progress in progresses:
                progress.update(1)

    async def run() -> float:
        with terminal() as file, ThreadPoolProgressExecutor(count) as executor:
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    future = executor.submit(hand_over)
                    future.add_tqdm_callback(tqdm.tqdm, {"desc": f"task {number}", "file": file, "leave": False})
                    group.create_task(future.check_for_progress())
                while len(progresses) < count:
                    await asyncio.sleep(0.1)
                mover = threading.Thread(target=move)
                mover.start()
                await asyncio.sleep(0.5)
                share = await share_of_loop(seconds) * 100
                stop.set()
                mover.join()
        return share

    return asyncio.run(run())


def bare_bars_share(count: int, seconds: float) -> float:
    """The same for a loop that does nothing but set so many bars of tqdm's and refresh them."""
    import tqdm

    async def run() -> float:
        with terminal() as file:
            bars = [tqdm.tqdm(desc=f"task {n}", total=10**6, file=file, leave=False) for n in range(count)]

            async def move() -> None:
                while True:
                    for bar in bars:
                        bar.n += 1
                        bar.set_postfix_str("running", refresh=False)
                        bar.refresh()
                    await asyncio.sleep(0.1)

            mover = asyncio.create_task(move())
            await asyncio.sleep(0.5)
            share = await share_of_loop(seconds) * 100
            mover.cancel()
            for bar in bars:
                bar.close()
        return share

    return asyncio.run(run())


def idle_share(kind: str, seconds: float) -> float:
    """Percent of a core that this process uses to watch ten tasks, three of them running, that report nothing."""

    async def run() -> float:
        async with make(kind, workers=3) as executor, asyncio.TaskGroup() as group:
            for number in range(10):
                future = executor.submit(time.sleep, seconds + 0.6 if number < 3 else 0)
                future.add_progress_callback(_look)
                group.create_task(future.check_for_progress())
            await asyncio.sleep(0.3)
            start = time.process_time(), perf_counter()
            await asyncio.sleep(seconds)
            share = (time.process_time() - start[0]) / (perf_counter() - start[1]) * 100
        return share

    return asyncio.run(run())


# Latencies


def cancel_latencies(kind: str, count: int) -> list[float]:
    """ms from `cancel()` to the task's noticing it, for tasks with steps of 1 ms."""
    with make(kind) as executor:
        return cancel_latencies_of(executor, count)


def cancel_latencies_of(executor: ProgressExecutor, count: int) -> list[float]:
    chance = random.Random(0)
    latencies = []
    executor.submit(jobs.nothing).result()
    for _ in range(count):
        future: Any = executor.submit(jobs.notice)
        while future.state["total"] is None:  # it is in its loop then
            time.sleep(0.001)
        time.sleep(chance.uniform(0.002, 0.006))
        start = time.monotonic()
        future.cancel()
        latencies.append((future.result() - start) * 1e3)
    return latencies


def progress_latencies(kind: str, count: int, workers: int = 4) -> list[float]:
    """ms from a task's write to the callback that has it, several tasks at once, watched by an event loop."""
    with make(kind, workers=workers) as executor:
        return progress_latencies_of(executor, count, workers)


def progress_latencies_of(executor: ProgressExecutor, count: int, workers: int) -> list[float]:
    latencies: list[float] = []

    def look(_: ProgressState, new: ProgressState) -> None:
        if new["n"] and new["status"] == "running":
            latencies.append((time.monotonic() - new["n"]) * 1e3)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for seed in range(workers):
                future = executor.submit(jobs.write, count // workers, seed)
                future.add_progress_callback(look)
                group.create_task(future.check_for_progress())

    asyncio.run(run())
    if len(latencies) < count // workers * workers:
        raise RuntimeError(f"{count} writes, but {len(latencies)} callbacks")
    return latencies


if __name__ == "__main__":
    serve(
        {
            "rate": rate,
            "memory": memory,
            "loop_cost": loop_cost,
            "bars_share": bars_share,
            "idle_share": idle_share,
            "cancel_latencies": cancel_latencies,
            "progress_latencies": progress_latencies,
        }
    )
