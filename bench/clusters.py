"""Scenarios on a Dask cluster: a scheduler and two workers, processes that are started as users start them."""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from time import perf_counter
from typing import Any

import jobs
from distributed import Client

from progress_executor import DaskProgressExecutor, ProgressState

WORKERS = 2


@contextlib.contextmanager
def cluster(threads: int) -> Iterator[Any]:
    """A client of two workers with so many threads each, on loopback."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "scheduler.json"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # for `jobs`

        def start(*arguments: str) -> None:
            command = [sys.executable, "-m", "dask", *arguments, "--host", "127.0.0.1", "--no-dashboard"]
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=folder)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        start("scheduler", "--port", "0", "--scheduler-file", str(file))
        while not file.exists() or not file.read_text().endswith("}"):
            time.sleep(0.01)
        client: Any = stack.enter_context(Client(scheduler_file=str(file), set_as_default=False))  # type: ignore[no-untyped-call]
        for number in range(WORKERS):
            local = f"{folder}/{number}"
            start("worker", client.scheduler.address, "--nthreads", str(threads), "--no-nanny", "--local-directory", local)
        client.wait_for_workers(WORKERS)
        yield client


def rate(client: Any, ours: bool, count: int) -> float:
    """No-op tasks per second: many submitted, then the results of all, each as its future gives it."""
    with DaskProgressExecutor(client) as executor:
        start = perf_counter()
        if ours:
            futures: list[Any] = [executor.submit(jobs.nothing) for _ in range(count)]
        else:
            futures = [client.submit(jobs.nothing, pure=False) for _ in range(count)]
        for future in futures:
            future.result()
        return count / (perf_counter() - start)


def steps(client: Any, told: bool, tasks: int, count: int) -> float:
    """ns per step of so many tasks, which report and are watched, or do neither."""
    with DaskProgressExecutor(client) as executor:
        start, task = perf_counter(), jobs.work if told else jobs.work_untold
        futures: list[Any] = [executor.submit(task, count) for _ in range(tasks)]
        for future in futures:
            if told:
                future.add_progress_callback(_look)
        wait(futures)
        return (perf_counter() - start) / (tasks * count) * 1e9


def shares(client: Any, told: bool, running: int, pending: int, seconds: float) -> tuple[float, float]:
    """Percent of a core that the scheduler and this process use, tasks being watched that report often, or not at all."""
    with tempfile.TemporaryDirectory() as folder, DaskProgressExecutor(client) as executor:
        stop = Path(folder) / "stop"
        futures: list[Any] = []
        for number in range(running + pending):
            task = jobs.report_until if told and number < running else jobs.wait_until
            futures.append(executor.submit(task, str(stop)))
            futures[-1].add_progress_callback(_look)
        watching = threading.Thread(target=wait, args=(futures,))
        watching.start()
        while sum(future.running() for future in futures) < running:
            time.sleep(0.05)
        time.sleep(1)
        before = client.run_on_scheduler(time.process_time), time.process_time(), perf_counter()
        time.sleep(seconds)
        after = client.run_on_scheduler(time.process_time), time.process_time(), perf_counter()
        stop.touch()
        watching.join()
        scheduler, here, taken = (late - early for late, early in zip(after, before, strict=True))
        return scheduler / taken * 100, here / taken * 100


def _look(_: ProgressState, __: ProgressState) -> None:
    pass
