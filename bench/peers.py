"""The pools that are compared: ours, the standard library's, and those a user would pick instead, opened alike."""

import multiprocessing
import multiprocessing.pool
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from operator import methodcaller
from typing import Any

import jobs

from progress_executor import ProcessPoolProgressExecutor, ThreadPoolProgressExecutor

OURS, LIBRARY = "ours", "standard library"
WITH_THREADS = ("multiprocessing.Pool", "pebble", "mpire", "joblib")
WITH_PROCESSES = (*WITH_THREADS, "loky", "deadpool-executor")
CHUNK = 50

Run = Callable[[Callable[[], Any], int], list[Any]]
"""Submit a function so often, then get all the results."""


def open_pool(name: str, kind: str, workers: int) -> Any:
    """A context manager whose value is the pool; `kind` is a start method, or "threads"."""
    threads = kind == "threads"
    context: Any = None if threads else multiprocessing.get_context(kind)
    if name == OURS:
        return ThreadPoolProgressExecutor(workers) if threads else ProcessPoolProgressExecutor(workers, context)
    if name == LIBRARY:
        return ThreadPoolExecutor(workers) if threads else ProcessPoolExecutor(workers, context)
    if name == "multiprocessing.Pool":
        return multiprocessing.pool.ThreadPool(workers) if threads else context.Pool(workers)
    if name == "pebble":
        import pebble

        return pebble.ThreadPool(workers) if threads else pebble.ProcessPool(workers, context=context)
    if name == "mpire":
        import mpire

        return mpire.WorkerPool(workers, start_method="threading" if threads else kind, keep_alive=True)
    if name == "joblib":  # of its backends for processes the faster one
        import joblib

        backend = "threading" if threads else "multiprocessing"
        return joblib.Parallel(workers, backend=backend, batch_size=1, pre_dispatch="all")
    if name == "loky":  # with a start method of its own
        import loky

        return loky.ProcessPoolExecutor(workers)
    import deadpool

    return deadpool.Deadpool(workers, mp_context=kind, max_backlog=10**6)


def runner(name: str, pool: Any) -> Run:
    if name == "joblib":
        from joblib import delayed

        return lambda fn, count: list(pool([delayed(fn)()] * count))
    submit = getattr(
        pool, {"multiprocessing.Pool": "apply_async", "pebble": "schedule", "mpire": "apply_async"}.get(name, "submit")
    )
    result = methodcaller("get" if name in ("multiprocessing.Pool", "mpire") else "result")

    def run(fn: Callable[[], Any], count: int) -> list[Any]:
        futures = [submit(fn) for _ in range(count)]
        return [result(future) for future in futures]

    return run


def map_in_chunks(name: str, pool: Any, count: int) -> None:
    """The same by the pool's `map`, which sends many calls at once; joblib finds out by itself how many."""
    items = range(count)
    if name == "joblib":
        from joblib import delayed

        pool.batch_size = "auto"
        pool(delayed(jobs.nothing_for)(item) for item in items)
    elif name == "pebble":
        list(pool.map(jobs.nothing_for, items, chunksize=CHUNK).result())
    elif name == "mpire":
        pool.map(jobs.nothing_for, items, chunk_size=CHUNK)
    else:
        list(pool.map(jobs.nothing_for, items, chunksize=CHUNK))
