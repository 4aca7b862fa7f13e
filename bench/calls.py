"""Counts the function calls of `submit`, of a task's run and of delivery, as JSON.

{"scenario": [calls per task or tick, the same of the standard library's executors or of a bare timer]}

Each scenario runs at two lengths, and the difference is divided by that of the lengths, so that what happens once cancels
out. Nothing in them depends on which thread is faster: only one thread is counted, while the others wait or have
finished, and the clock of the delivery is a virtual one. A lock is replaced by one whose use is a call that the profiler
sees: CPython enters a lock's `with` without telling it.
"""

import gc
import json
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


class CountedLock:
    """A lock in Python, whose every use is a call. Comes before anything imports a lock by name."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def __getattr__(self, name: str) -> Any:  # what Condition and others ask a lock for, where it has it
        return getattr(self._lock, name)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return bool(self._lock.acquire(blocking, timeout))

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return bool(self._lock.acquire())

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


_new_lock, _new_rlock = threading.Lock, threading.RLock
threading.Lock = lambda: CountedLock(_new_lock())  # type: ignore[assignment, misc, return-value]
threading.RLock = lambda: CountedLock(_new_rlock())  # type: ignore[assignment, misc, return-value]

_virtual: float | None = None
_real_monotonic = time.monotonic
_start = _real_monotonic()


def _monotonic() -> float:
    return _real_monotonic() - _start if _virtual is None else _virtual


time.monotonic = _monotonic

import asyncio  # noqa: E402
import multiprocessing  # noqa: E402
import selectors  # noqa: E402
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor  # noqa: E402

from progress_executor import ProcessPoolProgressExecutor, ThreadPoolProgressExecutor  # noqa: E402


class Count:
    """The calls in one thread while it is switched on."""

    def __init__(self) -> None:
        self.calls = 0

    def see(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1

    @contextmanager
    def on(self) -> Iterator[None]:
        sys.setprofile(self.see)
        try:
            yield
        finally:
            sys.setprofile(None)

    @contextmanager
    def off(self) -> Iterator[None]:
        """For what a scenario has to do meanwhile and does not want to count."""
        profile = sys.getprofile()
        sys.setprofile(None)
        try:
            yield
        finally:
            sys.setprofile(profile)


def nothing() -> None:
    pass


def with_progress(progress: Any = None) -> None:
    pass


def make(ours: bool, processes: bool = False, workers: int = 1) -> Any:
    if processes:
        context = multiprocessing.get_context("fork")
        return (ProcessPoolProgressExecutor if ours else ProcessPoolExecutor)(workers, mp_context=context)
    return (ThreadPoolProgressExecutor if ours else ThreadPoolExecutor)(workers)


def threads_submit(count: int, ours: bool) -> int:
    """`submit` while the worker is busy."""
    counted, go = Count(), threading.Event()
    with make(ours) as executor:
        executor.submit(go.wait)
        executor.submit(with_progress)
        with counted.on():
            for _ in range(count):
                executor.submit(with_progress)
        go.set()
    return counted.calls


def threads_run(count: int, ours: bool) -> int:
    """What the worker does for a task that is already in its queue: from taking it to telling that it is done."""
    counted, go, ended = Count(), threading.Event(), threading.Event()

    def begin() -> None:
        go.wait()
        sys.setprofile(counted.see)

    def end() -> None:
        sys.setprofile(None)
        ended.set()

    with make(ours) as executor:
        executor.submit(begin)
        for _ in range(count):
            executor.submit(with_progress)
        executor.submit(end)
        go.set()
        ended.wait()
    return counted.calls


def processes_submit(count: int, ours: bool) -> int:
    """`submit` in the calling thread while the worker is busy; the pool's own threads are not counted."""
    counted = Count()
    with make(ours, processes=True) as executor:
        executor.submit(time.sleep, 0.3)
        executor.submit(with_progress)
        time.sleep(0.1)  # the pool's threads have taken what they take before its turn
        with counted.on():
            for _ in range(count):
                executor.submit(with_progress)
    return counted.calls


def processes_serve(count: int, ours: bool) -> int:
    """What the thread of the caller that serves the worker does for a task, where more are waiting.

    The standard library shares the work between two threads, whose calls depend on which is faster: it is no reference.
    """
    if not ours:
        return 0
    counted, ended = Count(), threading.Event()

    def begin(_: Any) -> None:
        sys.setprofile(counted.see)

    def end(_: Any) -> None:
        sys.setprofile(None)
        ended.set()

    with make(ours, processes=True) as executor:
        first = executor.submit(time.sleep, 0.2)
        first.add_done_callback(begin)
        for _ in range(count):
            executor.submit(with_progress)
        executor.submit(nothing).add_done_callback(end)
        for _ in range(5):
            executor.submit(nothing)
        ended.wait()
    return counted.calls


_in_worker = Count()


def _begin_in_worker() -> None:
    sys.setprofile(_in_worker.see)


def _end_in_worker() -> int:
    sys.setprofile(None)
    return _in_worker.calls


def processes_run(count: int, ours: bool) -> int:
    """What the worker process does for a task: from reading it to writing its result."""
    with make(ours, processes=True) as executor:
        executor.submit(_begin_in_worker)
        for _ in range(count):
            executor.submit(with_progress)
        return int(executor.submit(_end_in_worker).result())


def _result(count: int, ours: bool, processes: bool) -> int:
    counted = Count()
    with make(ours, processes) as executor:
        futures = [executor.submit(nothing) for _ in range(count)]
    with counted.on():
        for future in futures:
            future.result()
    return counted.calls


def threads_result(count: int, ours: bool) -> int:
    """`result` of a future that is done."""
    return _result(count, ours, processes=False)


def processes_result(count: int, ours: bool) -> int:
    return _result(count, ours, processes=True)


class VirtualTime(selectors.SelectSelector):
    """A selector that does not sleep: time goes on by as much as the loop wants to wait."""

    def __init__(self, counted: Count, before: Callable[[], None]) -> None:
        super().__init__()
        self._counted = counted
        self._before = before

    def select(self, timeout: float | None = None) -> Any:
        global _virtual
        with self._counted.off():
            if _virtual is not None and timeout is not None:
                _virtual += max(timeout, 0.0)
            self._before()
            return super().select(timeout if _virtual is None else 0)


INTERVAL = 0.125  # adds up without a rest, as 0.1 would not: a rest is a turn of the loop in vain
FAR = 4096.0  # after what the clock has said so far, so that what was due by that is due; small enough to be exact


def _look(_: Any, __: Any) -> None:
    pass


async def _count_ticks(counted: Count, count: int) -> None:
    global _virtual
    _virtual = FAR
    await asyncio.sleep(8 * INTERVAL)
    with counted.on():
        await asyncio.sleep(count * INTERVAL)


def ticks(count: int, ours: bool, watched: int, reporting: bool) -> int:
    """So many intervals of the loop's time, with three tasks running, which do or do not report in each.

    The reference is a loop with nothing but a timer of that interval.
    """
    global _virtual
    counted, stop = Count(), threading.Event()
    updaters: list[Any] = []

    def work(progress: Any) -> None:
        updaters.append(progress)
        stop.wait()

    def report() -> None:
        if reporting and _virtual is not None:
            for progress in updaters:
                progress.update(1)

    async def scenario(executor: ThreadPoolProgressExecutor) -> None:
        futures = [executor.submit(work) for _ in range(watched)]
        for future in futures:
            future.add_progress_callback(_look)
        tasks = [asyncio.ensure_future(future.check_for_progress(INTERVAL)) for future in futures]
        while len(updaters) < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await _count_ticks(counted, count)
        for future in futures[3:]:
            future.cancel()
        stop.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def bare() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            loop.call_later(INTERVAL, again)

        again()
        await _count_ticks(counted, count)

    loop = asyncio.SelectorEventLoop(VirtualTime(counted, report))
    try:
        if ours:
            with ThreadPoolProgressExecutor(3) as executor:
                loop.run_until_complete(scenario(executor))
        else:
            loop.run_until_complete(bare())
    finally:
        _virtual = None
        loop.close()
    return counted.calls


async def _wrapped(future: Any) -> Any:
    return await asyncio.wrap_future(future)


def check_for_progress(count: int, ours: bool) -> int:
    """Tasks that are awaited in the loop: from `create_task` to the value, all of them ending at one moment."""
    counted, go, ended = Count(), threading.Event(), threading.Event()
    awaited = False

    def end_all() -> None:
        if awaited and not go.is_set():
            go.set()
            ended.wait()  # the one worker has by then told the loop of all those before

    async def scenario(executor: Any) -> None:
        nonlocal awaited
        executor.submit(go.wait)
        futures = [executor.submit(nothing) for _ in range(count)]
        executor.submit(ended.set)
        with counted.on():
            tasks = [
                asyncio.ensure_future(future.check_for_progress(1000) if ours else _wrapped(future)) for future in futures
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            awaited = True
            await asyncio.gather(*tasks)

    loop = asyncio.SelectorEventLoop(VirtualTime(counted, end_all))
    with make(ours) as executor:
        loop.run_until_complete(scenario(executor))
    loop.close()
    return counted.calls


SCENARIOS: dict[str, Callable[[int, bool], int]] = {
    "threads: submit": threads_submit,
    "threads: run in the worker": threads_run,
    "threads: result of a done future": threads_result,
    "processes: submit": processes_submit,
    "processes: run in the worker": processes_run,
    "processes: serve the worker": processes_serve,
    "processes: result of a done future": processes_result,
    "a tick, 10 watched, 3 running, silent": partial(ticks, watched=10, reporting=False),
    "a tick, 10 watched, 3 running, reporting": partial(ticks, watched=10, reporting=True),
    "a tick, 1000 watched, 3 running, reporting": partial(ticks, watched=1000, reporting=True),
    "check_for_progress of one task": check_for_progress,
}
LENGTH = 50


def per_step(scenario: Callable[[int, bool], int], ours: bool) -> float:
    scenario(LENGTH, ours)  # fills caches

    def calls(length: int) -> int:
        # A pipe that is full, say, or a thread that is slow to start, costs some more once in a while.
        return min(scenario(length, ours) for _ in range(3))

    return (calls(3 * LENGTH) - calls(LENGTH)) / (2 * LENGTH)


def main() -> None:
    gc.disable()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background, which saves some calls
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
    print(json.dumps({name: [per_step(scenario, True), per_step(scenario, False)] for name, scenario in SCENARIOS.items()}))


if __name__ == "__main__":
    main()
