"""The executors as executors: what the standard library's do, and the filling-in of `progress`."""

import asyncio
import concurrent.futures
import functools
import gc
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from progress_executor import (
    ProcessPoolProgressExecutor,
    ProgressExecutor,
    SyncProgressExecutor,
    ThreadPoolProgressExecutor,
    Updater,
)

from . import jobs
from .conftest import DEADLINE, KINDS, START_METHODS, make_executor, open_gate, until


def test_the_executors_are_the_standard_librarys():
    assert issubclass(ThreadPoolProgressExecutor, concurrent.futures.ThreadPoolExecutor)
    assert issubclass(ProcessPoolProgressExecutor, concurrent.futures.ProcessPoolExecutor)
    for cls in (ThreadPoolProgressExecutor, ProcessPoolProgressExecutor, SyncProgressExecutor):
        assert issubclass(cls, ProgressExecutor)
        assert issubclass(cls, concurrent.futures.Executor)


def test_with_gives_the_executor():
    with SyncProgressExecutor() as executor:
        assert isinstance(executor, SyncProgressExecutor)


# progress


@pytest.mark.parametrize(
    "call",
    [
        (jobs.count, 3),
        (jobs.Worker().method, 3),
        (jobs.Worker.of_class, 3),
        (jobs.Worker.static, 3),
        (jobs.Worker(), 3),
        (functools.partial(jobs.count, 3),),
        (functools.partial(jobs.count, n=3),),
    ],
    ids=["function", "method", "classmethod", "staticmethod", "object", "partial", "partial by name"],
)
def test_progress_is_filled_in_for_callables_of_every_kind(executor, call):
    future = executor.submit(*call)
    assert future.result() == 3
    assert future.state == {"n": 3, "total": 3, "status": "done"}


@pytest.mark.parametrize(
    ("fn", "args", "result"), [(len, ("abc",), 3), (max, (1, 2), 2), (jobs.add, (1,), 2), (int, ("7",), 7)]
)
def test_functions_without_progress_just_run(executor, fn, args, result):
    assert executor.submit(fn, *args).result() == result


def test_a_decorated_function_is_given_progress(executor):
    assert executor.submit(decorated, 4).result() == 4


def _decorate(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


@_decorate
def decorated(n, progress):
    return jobs.count(n, progress)


@pytest.mark.parametrize("kind", ["thread", "sync"])
def test_the_callers_own_progress_wins(kind):
    with make_executor(kind) as executor:
        for call in (
            functools.partial(executor.submit, jobs.count, 3),
            functools.partial(executor.submit, functools.partial(jobs.count, 3)),
        ):
            mine = Updater()
            future = call(progress=mine)
            assert future.result() == 3
            assert mine.n == 3
            assert future.state["n"] == 0
        assert executor.submit(jobs.count, 5, mine).result() == 5
        assert mine.n == 5
        assert executor.submit(functools.partial(jobs.count, progress=mine), 6).result() == 6
        assert mine.n == 6


@pytest.mark.parametrize("kind", ["thread", "sync"])
def test_a_parameter_that_is_not_called_by_name_is_left_alone(kind):
    def positional(progress, /):
        return progress

    def star(*progress):
        return progress

    def keywords(**progress):
        return progress

    with make_executor(kind) as executor:
        assert executor.submit(positional, 1).result() == 1
        assert executor.submit(star).result() == ()
        assert executor.submit(keywords).result() == {}


def test_keyword_arguments_named_like_those_of_submit_reach_the_function(executor):
    assert executor.submit(_named, self=1, fn=2).result() == (1, 2)


def _named(self, fn):
    return self, fn


def test_an_updater_of_ones_own_counts_without_an_executor():
    assert jobs.count(5, Updater()) == 5


def test_the_functions_of_submit_are_not_kept_alive(executor):
    def fn(progress):
        return 1

    if isinstance(executor, ProcessPoolProgressExecutor):
        pytest.skip("a local function cannot be pickled")
    future = executor.submit(fn)
    future.result()
    reference = weakref.ref(fn)
    del fn
    executor.shutdown()
    gc.collect()
    assert reference() is None


# concurrent.futures


def test_map_yields_results_in_order(executor):
    assert list(executor.map(jobs.add, range(10), range(10))) == [2 * n for n in range(10)]


def test_map_gives_progress_to_functions_that_take_it(executor):
    assert list(executor.map(jobs.count, range(10))) == list(range(10))
    assert list(executor.map(jobs.count, range(10), chunksize=3)) == list(range(10))


def test_map_raises_what_a_call_raises(executor):
    results = executor.map(jobs.fail, ["a", "b"])
    with pytest.raises(ValueError, match="a"):
        next(results)


def test_wait_and_as_completed(executor):
    futures = [executor.submit(jobs.add, n) for n in range(20)]
    assert {future.result() for future in concurrent.futures.as_completed(futures)} == set(range(1, 21))
    done, not_done = concurrent.futures.wait(futures)
    assert done == set(futures)
    assert not not_done


def test_wait_returns_on_the_first_exception(executor):
    futures = [executor.submit(jobs.fail), executor.submit(jobs.add, 1)]
    done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert futures[0] in done


def test_wait_mixes_futures_of_ours_and_of_others(executor):
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        futures = [other.submit(jobs.add, 1), executor.submit(jobs.add, 2)]
        assert sorted(future.result() for future in concurrent.futures.as_completed(futures)) == [2, 3]


def test_timeouts_are_kept(pool, gate):
    future = pool.submit(jobs.wait_for, gate)
    for wait in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            wait(timeout=0.01)
        with pytest.raises(TimeoutError):
            wait(timeout=0)
    assert concurrent.futures.wait([future], timeout=0.01).not_done == {future}
    with pytest.raises(TimeoutError):
        list(concurrent.futures.as_completed([future], timeout=0.01))
    open_gate(gate)
    assert future.result(timeout=30) == "waited"


def test_exception_and_result_agree(executor):
    future = executor.submit(jobs.fail, "why")
    assert isinstance(future.exception(), ValueError)
    with pytest.raises(ValueError, match="why"):
        future.result()


def test_shutdown_waits(pool, gate):
    future = pool.submit(jobs.wait_for, gate)
    threading.Timer(0.05, open_gate, [gate]).start()
    pool.shutdown(wait=True)
    assert future.done()


def test_shutdown_without_waiting_lets_tasks_end(pool, gate):
    futures = [pool.submit(jobs.wait_for, gate) for _ in range(6)]
    pool.shutdown(wait=False)
    open_gate(gate)
    assert [future.result() for future in futures] == ["waited"] * 6


def test_shutdown_cancels_pending_futures_and_no_running_one(pool, gate):
    futures = [pool.submit(jobs.step_until, gate) for _ in range(10)]
    until(lambda: futures[0].state["n"] > 0)
    pool.shutdown(wait=False, cancel_futures=True)
    assert not futures[0].cancel_requested()
    until(futures[-1].cancelled)
    open_gate(gate)
    assert futures[0].result() > 0
    concurrent.futures.wait(futures)


def test_shutdown_cancels_pending_futures_at_once(local_pool, gate):
    futures = [local_pool.submit(jobs.wait_for, gate) for _ in range(10)]
    local_pool.shutdown(wait=False, cancel_futures=True)
    assert futures[-1].cancelled()
    open_gate(gate)
    concurrent.futures.wait(futures)


def test_a_sync_task_is_lazy():
    with SyncProgressExecutor() as executor:
        ran = []
        future = executor.submit(ran.append, 1)
        assert not ran
        assert not future.running()
        future.result()
        assert ran == [1]
        executor.submit(ran.append, 2)
    assert ran == [1, 2]


def test_shutdown_of_sync_cancels_what_did_not_run():
    executor = SyncProgressExecutor()
    future = executor.submit(jobs.add, 1)
    executor.shutdown(cancel_futures=True)
    assert future.cancelled()


def test_as_completed_runs_sync_tasks_one_by_one():
    ran = []
    with SyncProgressExecutor() as executor:
        completed = concurrent.futures.as_completed([executor.submit(ran.append, n) for n in range(3)])
        next(completed)
        assert len(ran) == 1
        list(completed)
    assert len(ran) == 3


def test_a_sync_task_that_waits_for_itself_is_told_so():
    with SyncProgressExecutor() as executor:
        futures = []
        futures.append(executor.submit(lambda: futures[0].result()))
        with pytest.raises(RuntimeError, match="cannot wait for itself"):
            futures[0].result()


def test_one_thread_runs_a_sync_task_and_the_other_waits():
    with SyncProgressExecutor() as executor:
        entered, go = threading.Event(), threading.Event()

        def task():
            entered.set()
            assert go.wait(30)
            return threading.get_ident()

        future = executor.submit(task)
        thread = threading.Thread(target=future.result)
        thread.start()
        assert entered.wait(30)
        threading.Timer(0.01, go.set).start()
        assert future.result() == thread.ident
        thread.join()


def test_keyboard_interrupt_in_a_sync_task_cancels_it_and_is_raised():
    with pytest.raises(KeyboardInterrupt), SyncProgressExecutor() as executor:
        future, later = executor.submit(_interrupt), executor.submit(jobs.add, 1)
        future.result()
    assert future.cancelled()
    assert later.cancelled()


def _interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_a_with_block_left_by_ctrl_c_cancels_the_tasks(kind, gate):
    futures = []
    with pytest.raises(KeyboardInterrupt), make_executor(kind) as executor:
        futures.extend(executor.submit(jobs.step_until, gate) for _ in range(8))
        raise KeyboardInterrupt
    assert all(future.cancelled() for future in futures)


@pytest.mark.parametrize("kind", KINDS)
def test_a_with_block_left_by_another_exception_waits_for_the_tasks(kind):
    with pytest.raises(ZeroDivisionError), make_executor(kind) as executor:
        futures = [executor.submit(jobs.count, 10) for _ in range(8)]
        raise ZeroDivisionError
    assert [future.result() for future in futures] == [10] * 8


def test_thread_pool_arguments_work():
    local = threading.local()

    def initialize(value):
        local.value = value

    with ThreadPoolProgressExecutor(
        max_workers=2, thread_name_prefix="mine", initializer=initialize, initargs=(5,)
    ) as executor:
        assert executor.submit(lambda: (local.value, threading.current_thread().name)).result() == (5, "mine_0")


def test_a_broken_initializer_breaks_the_pool(pool_cls):
    with pool_cls(1, initializer=jobs.fail) as executor:
        future = executor.submit(jobs.add, 1)
        with pytest.raises(concurrent.futures.BrokenExecutor):
            future.result()
        assert future.state["status"] == "failed"


@pytest.fixture(params=[ThreadPoolProgressExecutor, ProcessPoolProgressExecutor])
def pool_cls(request, monkeypatch):
    logger = "concurrent.futures"
    monkeypatch.setattr(__import__("logging").getLogger(logger), "disabled", True)
    return request.param


@pytest.mark.parametrize("method", START_METHODS)
def test_process_pool_arguments_work(method):
    context = multiprocessing.get_context(method)
    with ProcessPoolProgressExecutor(1, context, initializer=_initialize, initargs=(5,)) as executor:
        assert executor.submit(_initialized).result() == 5
        assert executor.submit(jobs.count, 3).result() == 3
        assert executor.submit(jobs.implementation).result() == __import__("progress_executor").IMPLEMENTATION


def _initialize(value):
    global _value
    _value = value


def _initialized():
    return _value


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_are_replaced_after_max_tasks_per_child(method):
    context = multiprocessing.get_context(method)
    with ProcessPoolProgressExecutor(1, context, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(5)]
        assert len(set(pids)) == 3
        assert executor.submit(jobs.count, 3).result() == 3


@pytest.mark.parametrize(("method", "max_tasks"), [*((method, None) for method in START_METHODS), ("spawn", 1)])
def test_a_worker_that_is_let_go_runs_its_exit_handlers(method, max_tasks, tmp_path):
    options = {} if max_tasks is None else {"max_tasks_per_child": max_tasks}
    with make_executor(method, 1, initializer=_note_at_exit, initargs=(tmp_path,), **options) as executor:
        processes = set()
        pids = set()
        for _ in range(2):
            future = executor.submit(os.getpid)
            processes.update(executor._processes.values())
            pids.add(str(future.result()))
    assert {path.name for path in tmp_path.iterdir()} == pids
    assert {process.exitcode for process in processes} == {0}


def _note_at_exit(folder):
    multiprocessing.util.Finalize(None, (folder / str(os.getpid())).touch, exitpriority=0)


def test_an_executor_that_is_dropped_ends(pool_kind):
    executor = make_executor(pool_kind)
    future = executor.submit(jobs.count, 3)
    del executor
    assert future.result() == 3


@pytest.fixture(params=KINDS)
def pool_kind(request):
    return request.param


def test_a_task_may_submit_to_an_executor_of_its_own(pool):
    assert pool.submit(_nested).result() == 10


def _nested(progress):
    with ThreadPoolProgressExecutor(2) as executor:
        return sum(progress(executor.map(jobs.add, range(4))))


def test_threads_of_a_task_share_its_updater(executor):
    future = executor.submit(jobs.share_with_threads, 4, 5000)
    assert future.result() == 20_000
    assert future.state["n"] == 20_000


def test_futures_of_dropped_tasks_are_collected(executor):
    future = executor.submit(jobs.count_then_fail, 3)
    future.add_progress_callback(lambda old, new: None)
    future.exception()
    reference = weakref.ref(future)
    gc.collect()
    gc.disable()
    try:
        del future
        until(lambda: reference() is None, "the end of the future, without the collector")
    finally:
        gc.enable()


def test_ctrl_c_outside_of_any_with_block_stops_everything_at_exit(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "from progress_executor import *\n"
        "def work(progress):\n"
        "    while True:\n"
        "        progress.update(); time.sleep(0.001)\n"
        "if __name__ == '__main__':\n"
        "    executor = globals()[sys.argv[1]](2)\n"
        "    futures = [executor.submit(work) for _ in range(9)]\n"
        "    while not futures[0].state['n']: time.sleep(0.001)\n"
        "    raise KeyboardInterrupt\n"
    )
    for name in ("ThreadPoolProgressExecutor", "ProcessPoolProgressExecutor"):
        process = subprocess.run([sys.executable, script, name], stderr=subprocess.PIPE, text=True, timeout=60)
        assert process.returncode != 0
        assert process.stderr.count("Traceback") == 1
        assert "KeyboardInterrupt" in process.stderr


def test_asyncio_run_ends_with_sync_tasks_cancelled_by_ctrl_c(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, os, signal, time\n"
        "from progress_executor import *\n"
        "def work(progress):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    try:\n"
        "        while True:\n"
        "            progress.update(); time.sleep(0.001)\n"
        "    finally:\n"
        "        print('finally')\n"
        "async def main():\n"
        "    with SyncProgressExecutor() as executor:\n"
        "        async with asyncio.TaskGroup() as tg:\n"
        "            for _ in range(3):\n"
        "                tg.create_task(executor.submit(work))\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert process.stdout == "finally\n"
    assert "KeyboardInterrupt" in process.stderr


@pytest.mark.parametrize("turns", range(2))  # in the third one it runs
def test_ctrl_c_that_asyncio_heard_before_a_sync_task_begins_cancels_it(turns):
    async def main():
        with SyncProgressExecutor() as executor:
            async with asyncio.TaskGroup() as group:
                futures.append(executor.submit(jobs.count_slowly, 200, 0.01))
                group.create_task(futures[0])
                for _ in range(turns):
                    await asyncio.sleep(0)
                signal.raise_signal(signal.SIGINT)  # which cancels this, the main task, at its next `await`
                await asyncio.sleep(0)

    futures = []
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert futures[0].cancelled()


def test_a_sync_task_with_which_a_cancelled_main_task_cleans_up_runs_to_its_end():
    async def main():
        with SyncProgressExecutor() as executor:
            try:
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                cleaned.append(await executor.submit(jobs.count, 3))
                raise

    cleaned = []
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert cleaned == [3]


@pytest.mark.parametrize("kind", KINDS)
def test_several_threads_may_leave_an_executor_at_once(kind):
    def leave(executor, barrier, wait):
        barrier.wait()
        try:
            executor.shutdown(wait)
        except BaseException as error:
            errors.append(error)

    errors = []
    for _ in range(20):
        executor, barrier = make_executor(kind, 1), threading.Barrier(4)
        future = executor.submit(jobs.count, 3)
        threads = [threading.Thread(target=leave, args=(executor, barrier, n > 0), daemon=True) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        assert not errors
        assert future.result() == 3


def test_a_first_task_is_refused_where_another_thread_is_about_to_have_left():
    class LateToSubmit(ProcessPoolProgressExecutor):
        def _shut_down(self, wait):
            if wait:
                with pytest.raises(RuntimeError):
                    self.submit(jobs.count, 3)
            super()._shut_down(wait)

    LateToSubmit(1).shutdown()
