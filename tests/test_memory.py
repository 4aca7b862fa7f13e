"""Memory: nothing grows however long it goes on, what is dropped goes, and the extension keeps to its own memory."""

import asyncio
import concurrent.futures
import contextlib
import gc
import importlib
import io
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import pytest
from rich.console import Console
from rich.progress import Progress

import progress_executor
from progress_executor import IMPLEMENTATION, ProgressGroup

from . import abuse, jobs
from .conftest import LOCAL, POOLS, make_executor, until
from .test_slots import IMPLEMENTATIONS

# What is dropped goes, at once. Each way submits one task and leaves its future, or a group of it, in the box: a frame that
# had it in a variable would be in the traceback of what the task raises, and so keep it.


def step_until_cancelled(progress):
    while True:
        progress.update()
        time.sleep(0.0005)


def finish(box):
    with suppress(ValueError, concurrent.futures.CancelledError):
        box[0].result()


def running(executor, box):
    box.append(executor.submit(step_until_cancelled))
    until(lambda: box[0].state["n"])


async def awaiting(box, how):
    with suppress(ValueError):
        await how(box[0])


async def cancel_who_awaits(box):
    task = asyncio.ensure_future(box[0].check_for_progress())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    del task
    while not box[0].done():
        await asyncio.sleep(0.001)


def returned(executor, box):
    box.append(executor.submit(jobs.count, 5))
    finish(box)


def failed(executor, box):
    box.append(executor.submit(jobs.count_then_fail, 5))
    finish(box)


def asked_for_its_exception(executor, box):
    box.append(executor.submit(jobs.fail))
    assert isinstance(box[0].exception(), ValueError)


def cancelled(executor, box):
    running(executor, box)
    box[0].cancel()
    finish(box)


def overdue(executor, box):
    box.append(executor.submit(step_until_cancelled))
    box[0].set_deadline(timeout=0.01)
    with suppress(TimeoutError):
        box[0].result()


def cancelled_by_who_awaits(executor, box):
    running(executor, box)
    asyncio.run(cancel_who_awaits(box))


def cancelled_before_it_started(executor, box):
    blockers = [executor.submit(time.sleep, 0.02) for _ in range(5)]
    box.append(executor.submit(jobs.count, 5))
    assert box[0].cancel()
    concurrent.futures.wait(blockers)


def in_a_loop(fn, how):
    def way(executor, box):
        box.append(executor.submit(fn))
        asyncio.run(awaiting(box, how))

    return way


def waited_for(executor, box):
    box.append(executor.submit(jobs.count, 5))
    concurrent.futures.wait(box)
    list(concurrent.futures.as_completed(box))


def shown(fn):
    def way(executor, box):
        box.append(executor.submit(fn, 5))
        box[0].add_progress_callback(lambda old, new: box[0])
        box[0].add_log_callback(lambda text: box[0])
        box[0].add_tqdm_callback(init_kwargs={"file": io.StringIO()})
        box[0].add_rich_callback(Progress(console=Console(file=io.StringIO())))
        finish(box)

    return way


def member(fn):
    def way(executor, box):
        box.append(executor.submit(fn))
        box.insert(0, ProgressGroup(box))
        finish(box)
        del box[0]

    return way


def alone(future):
    return future


def in_a_group(future):
    return ProgressGroup([future])


def followed(fn, wrap):
    def way(executor, box):
        box.append(wrap(executor.submit(fn)))
        for _ in box[0].states(0.001):
            pass

    return way


def followed_in_a_loop(fn, wrap):
    async def follow(box):
        async for _ in box[0].states(0.001):
            pass

    def way(executor, box):
        box.append(wrap(executor.submit(fn)))
        asyncio.run(follow(box))

    return way


def group(fn, how=None):
    def way(executor, box):
        box.append(ProgressGroup([executor.submit(fn)]))
        finish(box) if how is None else asyncio.run(awaiting(box, how))

    return way


def short():
    time.sleep(0.01)


def interrupted_by_a_done_callback(executor, box):
    def interrupt(_):
        raise KeyboardInterrupt

    box.append(executor.submit(jobs.count, 5))
    box[0].add_done_callback(interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        box[0].result()
    box[0].result()


WAYS = {
    "returned": returned,
    "interrupted by a done callback": interrupted_by_a_done_callback,
    "failed": failed,
    "asked for its exception": asked_for_its_exception,
    "cancelled": cancelled,
    "overdue": overdue,
    "cancelled by who awaits": cancelled_by_who_awaits,
    "cancelled before it started": cancelled_before_it_started,
    "waited for": waited_for,
    "shown": shown(jobs.count),
    "shown and failed": shown(jobs.count_then_fail),
    "member of a group": member(short),
    "member of a group that failed": member(jobs.fail),
    "group": group(short),
    "group that failed": group(jobs.fail),
    "group that was awaited": group(short, lambda group: group),
    "group that was awaited and failed": group(jobs.fail, lambda group: group),
    "group that was run as a task and failed": group(
        jobs.fail, lambda group: asyncio.create_task(group.check_for_progress())
    ),
}
for name, how in {
    "awaited": lambda future: future,
    "wrapped": asyncio.wrap_future,
    "run as a task": lambda future: asyncio.get_running_loop().create_task(future),
    "watched as a task": lambda future: asyncio.get_running_loop().create_task(future.check_for_progress()),
}.items():
    WAYS[name] = in_a_loop(short, how)
    WAYS[f"{name} and failed"] = in_a_loop(jobs.fail, how)
for wrap in (alone, in_a_group):
    for fn in (short, jobs.fail):
        WAYS[f"followed {wrap.__name__}: {fn.__name__}"] = followed(fn, wrap)
        WAYS[f"followed {wrap.__name__} in a loop: {fn.__name__}"] = followed_in_a_loop(fn, wrap)
NEVER_SYNC = {"cancelled", "cancelled by who awaits"}
ONLY_SYNC = {"interrupted by a done callback"}  # in a pool it is logged, and pytest keeps what is


@contextmanager
def without_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def goes(reference):
    """Whether it does by itself, and soon: a worker has the work item for a moment longer."""
    deadline = time.monotonic() + 1
    while reference() is not None and time.monotonic() < deadline:
        time.sleep(0.0005)
    return reference() is None


@pytest.mark.parametrize("kind", LOCAL)
def test_a_future_that_is_dropped_goes_without_the_collector_whatever_became_of_it(kind):
    kept = []
    with make_executor(kind, 1) as executor, without_collector():
        for name, way in WAYS.items():
            if name not in (NEVER_SYNC if kind == "sync" else ONLY_SYNC):
                box = []
                way(executor, box)
                reference = weakref.ref(box[0])
                box.clear()
                if not goes(reference):
                    kept.append(name)
    assert not kept


@pytest.mark.parametrize("kind", LOCAL)
def test_the_arguments_and_the_value_of_a_task_go_with_its_future(kind):
    class Value:
        pass

    if kind == "process":
        argument, value = Thing(), None
    else:
        argument, value = Thing(), Thing()
    gone = [weakref.ref(argument)]
    with make_executor(kind, 1) as executor, without_collector():
        future = executor.submit(give_back, argument, value)
        del argument, value
        gone.append(weakref.ref(future.result()))
        assert goes(gone[0])
        assert gone[1]() is not None
        del future
        assert goes(gone[1])


class Thing:
    pass


def give_back(argument, value):
    return Thing() if value is None else value


@pytest.mark.parametrize("kind", LOCAL)
def test_an_executor_that_was_left_goes_when_it_is_dropped(kind):
    with make_executor(kind) as executor:
        future = executor.submit(jobs.count, 5)
        future.add_progress_callback(lambda old, new: None)
    reference = weakref.ref(executor)
    del executor
    until(lambda: gc.collect() is None or reference() is None, "the end of the executor")
    assert future.result() == 5


# Nothing grows


def resident(pids=("self",)):
    """The bytes of memory that the processes have."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in pids)


def growth(batch, measure, batches=10):
    """By how much what is measured behind each batch has grown, from one plateau to the other."""
    readings = []
    for _ in range(batches):
        batch()
        gc.collect()
        readings.append(measure())
    first, last = readings[batches // 2 - 2 : batches // 2 + 1], readings[-3:]
    return [
        median(after) - median(before)
        for before, after in zip(zip(*first, strict=True), zip(*last, strict=True), strict=True)
    ]


def measured():
    return sys.getallocatedblocks(), resident()


on_linux = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux tells a process's memory this way")
MEGABYTE = 1 << 20


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("module", IMPLEMENTATIONS.values())
def test_a_million_steps_take_no_memory(module):
    progress = importlib.import_module(module).Updater()

    def steps():
        for i in progress(range(50_000)):
            if not i % 5000:
                progress.status = str(i)
        for _ in range(50_000):
            progress.update(1)

    blocks, memory = growth(steps, measured)
    assert blocks < 100
    assert memory < MEGABYTE


FULL = (
    1 if IMPLEMENTATION == "cython" else 10
)  # of which the interpreted form, which does the same with memory, has one part


OURS = [tracemalloc.Filter(True, f"{Path(file).parent}/*") for file in (progress_executor.__file__, __file__)]


def traced_blocks():
    """How many pieces of memory the package, its extension and these tests have allocated, as tracemalloc knows.

    Not how large: tables are as large as what happened to wait in them. And what the standard library replaces by and by,
    in its own pools too, is not ours; what it keeps for good is among the blocks. Nor are the names by which the interpreter
    has looked for attributes: it keeps up to 4096, by their addresses, and the name of each error's class is unpickled anew.
    """
    clear = "_clear_internal_caches" if sys.version_info >= (3, 13) else "_clear_type_cache"
    getattr(sys, clear)()
    return [len(tracemalloc.take_snapshot().filter_traces(OURS).traces)]


def assert_no_growth(kind, max_workers, act, count):
    """That nothing grows where `act(executor, count)` is run over and over: not here, and not in the workers."""
    with make_executor(kind, max_workers) as executor:
        act(executor, 200)
        workers = tuple(getattr(executor, "_processes", None) or ())
        blocks, memory, memory_of_workers = growth(
            lambda: act(executor, count // 20), lambda: (*measured(), resident(workers)), 20
        )
        tracemalloc.start()  # not before: what it keeps itself grows by megabytes
        try:
            (traced,) = growth(lambda: act(executor, count // 50), traced_blocks)
        finally:
            tracemalloc.stop()
    assert blocks < 300
    assert memory < 2 * MEGABYTE
    assert memory_of_workers < 2 * MEGABYTE
    assert traced < 50  # in half of the batches


def count_and_say(n, progress):
    """Half of the steps in a loop, half by themselves, and now and then a new status."""
    for i in progress(range(n // 2)):
        if not i % 1000:
            progress.status = str(i)
    for i in range(n // 2):
        if not i % 1000:
            progress.status = str(i)
        progress.update(1)


def count_many(executor, count):
    futures = [executor.submit(count_and_say, count // 4) for _ in range(4)]
    futures[0].add_progress_callback(lambda old, new: None)
    concurrent.futures.wait(futures)
    assert all(future.state["n"] == count // 4 for future in futures)


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize(("kind", "steps"), [("thread", 1_000_000), ("process", 1_000_000), ("sync", 100_000)])
def test_a_million_steps_of_watched_tasks_take_no_memory(kind, steps):
    assert_no_growth(kind, 4, count_many, steps)


def run_many(executor, count):
    """So many tasks of every kind: with progress and without, that fail, that are watched, in groups and in a loop."""
    futures = [
        executor.submit(jobs.fail)
        if n % 10 == 0
        else executor.submit(jobs.count, 3)
        if n % 3
        else executor.submit(jobs.add, n)
        for n in range(count)
    ]
    for future in futures[::50]:
        future.add_progress_callback(lambda old, new: None)
    for future in futures[::500]:
        future.add_tqdm_callback(init_kwargs={"file": io.StringIO()})
    group = ProgressGroup(futures[: count // 2])
    group.add_progress_callback(lambda old, new: None)
    with suppress(ValueError):
        group.result()
    # In debug mode a loop that had to wait for a processor says so, and pytest keeps what is logged.
    asyncio.run(asyncio.wait_for(gathered(futures[count // 2 : count // 2 + 20]), None), debug=False)
    for future in futures:
        assert isinstance(future.exception(), ValueError) or future.result() is not None


async def gathered(futures):
    await asyncio.gather(*(future.check_for_progress() for future in futures), return_exceptions=True)


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("kind", POOLS)
def test_a_hundred_thousand_tasks_take_no_memory(kind):
    assert_no_growth(kind, 2, run_many, 100_000 // FULL)


def cancel_many(executor, count):
    futures = [executor.submit(step_until_cancelled) for _ in range(count)]
    for future in reversed(futures[count // 2 :]):
        future.cancel()
    for future in futures[: count // 2]:
        until(lambda future=future: future.state["n"])
        future.cancel()
    concurrent.futures.wait(futures)
    assert all(future.cancelled() for future in futures)


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("kind", POOLS)
def test_ten_thousand_cancelled_tasks_take_no_memory(kind):
    assert_no_growth(kind, 4, cancel_many, 10_000 // FULL)


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("kind", LOCAL)
def test_many_executors_groups_and_loops_take_no_memory(kind):
    def batch():
        for _ in range(3):
            with make_executor(kind, 1) as executor:
                run_many(executor, 20)

    blocks, memory = growth(batch, measured)
    assert blocks < 300
    assert memory < 2 * MEGABYTE


# The extension


@pytest.mark.parametrize("module", IMPLEMENTATIONS.values())
def test_abuse_leaves_no_reference_behind(module):
    updater = importlib.import_module(module).Updater
    abuse.abuse(updater, 3)
    references, objects = abuse.counted()
    abuse.abuse(updater, 15)
    references_now, objects_now = abuse.counted()
    grown = {
        repr(thing): now - before
        for thing, before, now in zip(abuse.WATCHED, references, references_now, strict=True)
        if now - before >= 10
    }
    assert not grown
    assert objects_now - objects < 10


@pytest.mark.slow
@pytest.mark.skipif(IMPLEMENTATION == "python", reason="the compiled form was not built, or is switched off")
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="memcheck is a tool of valgrind, which is not on the PATH")
def test_memcheck_finds_the_extension_clean():
    # With the C library's malloc, whose blocks memcheck knows, CPython needs no suppressions.
    command = ["valgrind", "--tool=memcheck", "--quiet", "--leak-check=no", "--error-exitcode=99"]
    answer = subprocess.run(
        [*command, sys.executable, "-m", "tests.abuse"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "Fatal error at startup" in answer.stderr:
        pytest.skip("valgrind cannot run this interpreter, for want of the C library's symbols")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "abused\n"
