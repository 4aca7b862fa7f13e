"""progress-executor 0.5, from the package index: the same scenarios. Runs in an environment that has it in place of ours.

Its tasks end only when somebody looks at them, so that each has to be watched in an event loop.
"""

import asyncio
import random
import sys
import threading
import time
from pathlib import Path
from time import perf_counter
from typing import Any

import jobs
from timing import calling, serve, timed, timed_iteration

sys.path[:] = [folder for folder in sys.path if not (Path(folder) / "pyproject.toml").exists()]

from progress_executor.pool_progress_executor import PoolUpdater  # noqa: E402

from progress_executor import ProcessPoolProgressExecutor, ThreadPoolProgressExecutor  # noqa: E402

_samples: dict[str, Any] = {}


def _updater(total: int) -> Any:
    updater = PoolUpdater(threading.Event(), threading.Event(), {"n": 0, "total": 0, "status": "pending"})
    updater.total = total
    return updater


def step(name: str, seconds: float) -> float:
    """ns per step."""
    if name not in _samples:
        _samples[name] = timed(calling(name, progress=_updater(10**9)), seconds)
    return float(_samples[name]())


def iterate(over: str, count: int) -> float:
    """ns per item."""
    return timed_iteration(lambda n: _updater(n)(range(n) if over == "range" else [None] * n), count)()


def rate(kind: str, count: int) -> float:
    """Tasks per second."""

    async def run() -> float:
        executor: Any = ThreadPoolProgressExecutor(2) if kind == "threads" else ProcessPoolProgressExecutor(2)
        with executor:
            start = perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(executor.submit(jobs.nothing).check_for_progress())
            return count / (perf_counter() - start)

    return asyncio.run(run())


def cancel_latencies(count: int) -> list[float]:
    """ms from `cancel()` to the task's noticing it, on threads."""
    chance = random.Random(0)

    async def run() -> list[float]:
        latencies = []
        executor = ThreadPoolProgressExecutor(2)
        for _ in range(count):
            noticed: list[float] = []

            def work(progress: Any, noticed: list[float] = noticed) -> None:
                noticed.append(jobs.notice(progress))

            future = executor.submit(work)
            await asyncio.sleep(chance.uniform(0.2, 0.4))
            start = time.monotonic()
            future.cancel()
            while not noticed:
                await asyncio.sleep(0.001)
            future.progress_ev.clear()  # it waits for that
            latencies.append((noticed[0] - start) * 1e3)
            while not future.done():
                future.progress_ev.clear()
                await asyncio.sleep(0.001)
        executor.shutdown()
        return latencies

    return asyncio.run(run())


if __name__ == "__main__":
    serve({"step": step, "iterate": iterate, "rate": rate, "cancel_latencies": cancel_latencies})
