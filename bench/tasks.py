"""Scenarios with whole executors: tasks per second, memory, the event loop's costs, latencies.

Run as a script it answers for the form of the package that its environment picks: see `timing.Remote`.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import random
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from time import perf_counter
from typing import Any, TextIO

import jobs
from timing import serve

from progress_executor import (
    ProcessPoolProgressExecutor,
    ProgressExecutor,
    ProgressGroup,
    ProgressState,
    ThreadPoolProgressExecutor,
)

WORKERS = 2


def make(kind: str, ours: bool, workers: int = WORKERS) -> Any:
    if kind == "threads":
        return ThreadPoolProgressExecutor(workers) if ours else ThreadPoolExecutor(workers)
    context = multiprocessing.get_context(kind)
    return (ProcessPoolProgressExecutor if ours else ProcessPoolExecutor)(workers, mp_context=context)


# Tasks per second. On which core a pool's threads and processes come to lie decides more than any of the contenders, and
# stays so while the pool lives: each sample, but for the peers', has a pool of its own, and threads, of which one runs at a
# time anyway, have one core. Starting the pool is not in the figure.


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
def warm(kind: str, ours: bool) -> Iterator[Any]:
    with on_one_core() if kind == "threads" else nullcontext(), make(kind, ours) as executor:
        # Tasks one after the other would leave it at one worker, where workers start on demand.
        for future in [executor.submit(time.sleep, 0.2 if kind == "spawn" else 0.01) for _ in range(WORKERS)]:
            future.result()
        for _ in range(20):
            executor.submit(jobs.nothing).result()
        workers = executor._threads if kind == "threads" else executor._processes
        if len(workers) != WORKERS:
            raise RuntimeError(f"{len(workers)} workers, not {WORKERS}")
        yield executor


def rate_of(submit: Callable[..., Any], count: int) -> float:
    start = perf_counter()
    futures = [submit(jobs.nothing) for _ in range(count)]
    for future in futures:
        future.result()
    return count / (perf_counter() - start)


def rate(kind: str, ours: bool, count: int) -> float:
    """Tasks per second: many submitted, then the results of all."""
    with warm(kind, ours) as executor:
        return rate_of(executor.submit, count)


def round_trips(kind: str, ours: bool, count: int) -> float:
    """Tasks per second, each submitted when the one before has its result."""
    with warm(kind, ours) as executor:
        start = perf_counter()
        for _ in range(count):
            executor.submit(jobs.nothing).result()
        return count / (perf_counter() - start)


async def _wrapped(future: Any) -> Any:
    return await asyncio.wrap_future(future)


def watched(ours: bool, count: int) -> float:
    """Tasks per second, each awaited in an asyncio task of its own."""

    async def run() -> float:
        with warm("threads", ours) as executor:
            start = perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    future: Any = executor.submit(jobs.nothing)
                    group.create_task(future.check_for_progress() if ours else _wrapped(future))
            return count / (perf_counter() - start)

    return asyncio.run(run())


# Memory


def memory(kind: str, ours: bool, count: int = 1000) -> float:
    """Bytes that each pending task takes, with its work item."""
    go = threading.Event()
    executor = make(kind, ours, workers=1)
    try:
        # A process pool takes some more off its queue: let them be others than those that are weighed.
        held = [executor.submit(_hold, go) for _ in range(3)] if kind == "threads" else [executor.submit(time.sleep, 1)] * 3
        for _ in range(10):
            executor.submit(jobs.nothing)
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
        if held[0].done():
            raise RuntimeError("the tasks that were weighed were not pending any more")
        for future in futures:
            future.cancel()
    finally:
        go.set()
        executor.shutdown()
    return (after - before) / count


def _hold(go: threading.Event) -> None:
    go.wait()


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
        async with make(kind, ours=True, workers=3) as executor, asyncio.TaskGroup() as group:
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
    with make(kind, ours=True) as executor:
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
    with make(kind, ours=True, workers=workers) as executor:
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
            "round_trips": round_trips,
            "watched": watched,
            "memory": memory,
            "loop_cost": loop_cost,
            "bars_share": bars_share,
            "idle_share": idle_share,
            "cancel_latencies": cancel_latencies,
            "progress_latencies": progress_latencies,
        }
    )
