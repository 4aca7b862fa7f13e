"""What is Dask's own: its options, its ways to lose tasks and to run them again, its clients."""

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import gc
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from pathlib import Path

import pytest

import progress_executor

from . import jobs
from .conftest import DEADLINE, local_cluster, open_gate, until
from .terminal import Terminal
from .test_demo import demo, expected_line, percentage
from .test_futures import watch

distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed: it is the extra `dask`")

import dask  # noqa: E402

from progress_executor import DaskProgressExecutor, __version__  # noqa: E402
from progress_executor._executors import relay  # noqa: E402
from progress_executor._monitor import INTERVAL  # noqa: E402

LOCAL = {"processes": False, "dashboard_address": "127.0.0.1:0"}


@pytest.fixture
def cluster():
    """Two workers in this process, of two threads each."""
    with local_cluster(n_workers=2, threads_per_worker=2) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def executor(client):
    with DaskProgressExecutor(client) as executor:
        yield executor


def worker_of(*args, **kwargs):
    return distributed.get_worker().address


# Submitting


def test_the_options_of_dask_are_taken_from_a_function_that_does_not_know_them(executor, cluster):
    addresses = [worker.address for worker in cluster.workers.values()]
    for address in addresses:
        options = {"workers": [address], "priority": 10, "fifo_timeout": "1 s", "allow_other_workers": False}
        assert executor.submit(worker_only, **options).result() == address
    future = executor.submit(jobs.count, 3, key="my key", retries=1)
    assert "my key" in executor.client.futures
    assert future.result() == 3


def worker_only():
    return worker_of()


def test_a_function_keeps_the_keywords_that_it_knows(executor):
    assert executor.submit(lambda retries, key=None: (retries, key), retries=2, key="mine").result() == (2, "mine")
    assert executor.submit(lambda **kwargs: kwargs, workers=1, resources=2).result() == {"workers": 1, "resources": 2}


def trying(fn):
    @functools.wraps(fn)
    def wrapper(*args, retries=3, **kwargs):
        return retries, fn(*args, **kwargs)

    return wrapper


def test_a_decorator_keeps_the_keywords_that_it_knows(executor):
    decorated = trying(lambda x: x)
    assert executor.submit(decorated, 1, retries=7).result() == (7, 1)
    assert executor.submit(decorated, x=2).result() == (3, 2)


def test_resources_are_waited_for(executor):
    future = executor.submit(jobs.count, 3, resources={"none such": 1})
    with pytest.raises(TimeoutError):
        future.result(0.3)
    assert future.state["status"] == "pending"
    assert future.cancel()
    until(future.cancelled)


def test_a_key_that_is_in_use_is_refused(executor, gate):
    future = executor.submit(jobs.step_until, gate, key="once")
    with pytest.raises(ValueError, match="once"):
        executor.submit(jobs.count, 3, key="once")
    open_gate(gate)
    future.result()
    for n in range(10):  # at once: nobody has to wait until Dask has heard that the last one ended
        assert executor.submit(jobs.add, n, key="once").result() == n + 1


def test_a_key_that_another_client_uses_is_the_tasks_error(cluster, executor):
    with distributed.Client(cluster, set_as_default=False) as other:
        theirs = other.submit(jobs.add, 1, key="theirs")
        theirs.result()
        with pytest.raises(ValueError, match="another client"):
            executor.submit(jobs.count, 3, key="theirs").result(DEADLINE)


def test_a_wrong_option_is_the_callers_error(executor):
    with pytest.raises(ValueError, match="allow_other_workers"):
        executor.submit(jobs.count, 3, allow_other_workers=True)


def test_equal_calls_are_two_tasks(executor, gate):
    futures = [executor.submit(jobs.step_until, gate) for _ in range(2)]
    until(lambda: all(future.running() for future in futures))
    assert futures[0].cancel()
    until(futures[0].cancelled)
    assert not futures[1].done()
    open_gate(gate)


def test_dask_futures_among_the_arguments_are_their_values_however_deep(executor, client):
    one, two = client.submit(jobs.add, 0), client.submit(jobs.add, 1)

    def add(a, things, *, b):
        return a + things["list"][0] + things["list"][1][0] + b

    assert executor.submit(add, one, {"list": [two, (one,)]}, b=two).result() == 6


def test_a_dask_future_that_failed_fails_the_task(executor, client):
    failed = client.submit(jobs.fail)
    assert isinstance(executor.submit(jobs.add, failed).exception(), ValueError)


def test_what_cannot_be_pickled_is_its_own_tasks_error_at_once(executor):
    for future in (
        executor.submit(jobs.add, threading.Lock()),
        executor.submit(lambda: threading.Lock()),
        executor.submit(raise_unpicklable),
    ):
        assert future.exception(DEADLINE) is not None
        assert future.state["status"] == "failed"
    assert executor.submit(jobs.add, 1).result() == 2


def raise_unpicklable():
    error = ValueError("unpicklable")
    error.lock = threading.Lock()
    raise error


def test_a_worker_without_the_package_says_what_it_needs(executor, monkeypatch):
    monkeypatch.setitem(sys.modules, "progress_executor._executors", None)
    error = executor.submit(jobs.add, 1).exception()
    assert isinstance(error, ImportError)
    assert f"progress-executor {__version__}" in str(error)


def test_a_worker_with_another_version_says_which_it_has_and_which_it_needs(executor, monkeypatch):
    monkeypatch.setattr(progress_executor, "__version__", "0.5")  # of the workers: the client's went along at import
    error = executor.submit(jobs.add, 1).exception()
    assert isinstance(error, ImportError)
    assert f"needs progress-executor {__version__}" in str(error)
    assert "it has 0.5" in str(error)


def test_without_dask_the_import_says_which_extra_to_install():
    program = """
import sys
sys.modules["distributed"] = None
import progress_executor
try:
    progress_executor.DaskProgressExecutor
except ImportError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "progress-executor[dask]" in answer.stdout


# Progress


class Events:
    """The events that the scheduler has had for an executor, as lists of what they tell."""

    def __init__(self, executor):
        self._executor = executor

    def __call__(self):
        return [pickle.loads(message) for _, message in self._executor.client.get_events(self._executor._topic)]


def test_one_event_per_interval_tells_of_all_tasks_of_a_worker_and_none_when_nothing_runs(executor, gate):
    events = Events(executor)
    futures = [executor.submit(jobs.step_until, gate) for _ in range(4)]
    until(lambda: all(future.state["n"] > 0 for future in futures))
    before, began = len(events()), time.monotonic()
    time.sleep(1)
    per_second = (len(events()) - before) / (time.monotonic() - began)
    assert per_second <= 2 * 10 + 2  # workers, intervals
    assert max(map(len, events())) == 2
    assert max(len(pickle.dumps(event)) / len(event) for event in events()) < 60
    open_gate(gate)
    concurrent.futures.wait(futures)
    time.sleep(0.3)
    before = len(events())
    time.sleep(0.3)
    assert len(events()) == before


def test_an_event_that_says_nothing_new_is_not_sent(executor, gate):
    events = Events(executor)
    future = executor.submit(jobs.report_and_wait, 1, 2, "waiting", gate)
    until(lambda: future.state["n"] == 1)
    before = len(events())
    time.sleep(0.5)
    assert len(events()) == before
    open_gate(gate)
    future.result()


def fail_until_third(folder, progress):
    """Counts to 10 in its first two attempts and fails; returns in its third."""
    attempt = len(os.listdir(folder))
    Path(folder, str(attempt)).touch()
    progress.total = 10
    for _ in range(3 if attempt == 2 else 10):
        progress.update()
    time.sleep(0.3)  # for the relay to tell
    if attempt < 2:
        raise ValueError(attempt)
    return attempt


def test_a_task_that_is_tried_again_starts_its_progress_again(executor, tmp_path):
    future = executor.submit(fail_until_third, str(tmp_path), retries=5)
    states = watch(future)
    assert future.result() == 2
    ns = [new["n"] for _, new in states]
    assert 10 in ns
    assert ns.index(10) < len(ns) - 1 - ns[::-1].index(3)
    assert [new["status"] for _, new in states].count("done") == 1
    assert future.state == {"n": 3, "total": 10, "status": "done"}


def fail_when_cancelled(progress):
    try:
        while True:
            progress.update()
            time.sleep(0.001)
    except asyncio.CancelledError:
        raise ValueError(progress.n) from None


def test_a_task_that_was_cancelled_is_not_tried_again(executor):
    future = executor.submit(fail_when_cancelled, retries=5)
    until(lambda: future.state["n"] > 0)
    assert future.cancel()
    with pytest.raises(ValueError) as info:  # noqa: PT011
        future.result(DEADLINE)
    assert future.state == {"n": info.value.args[0], "total": None, "status": "failed"}


def tell(future, run_id, n):
    """Have it heard, as if a worker had told."""
    future._task.hear_news(relay.News(future._task.number, run_id, 0.0, False, 0.0, n, None, "running", []))


def test_what_an_earlier_attempt_tells_late_is_not_heard(executor):
    future = executor.submit(jobs.add, 1, resources={"none such": 1})
    for run_id, n in (1, 10), (2, 3), (1, 11):
        tell(future, run_id, n)
    assert future.cancel()
    until(future.cancelled)
    assert future.state["n"] == 3


def test_the_final_state_is_there_as_soon_as_result_returns(executor):
    for n in range(50):
        future = executor.submit(jobs.count, n)
        future.result()
        assert future.state == {"n": n, "total": n, "status": "done"}


class UnpickledSlowly:
    def __init__(self, *paths):
        self._paths = paths

    def __reduce__(self):
        return touch_and_wait, self._paths


def touch_and_wait(begun, gate):
    Path(begun).touch()
    jobs.wait_for(gate)


def return_slowly(begun, gate, progress):
    progress.update(3)
    return UnpickledSlowly(begun, gate)


def test_the_final_status_is_told_with_the_end_and_not_before(executor, gate, tmp_path):
    future = executor.submit(return_slowly, str(tmp_path / "begun"), gate)
    until((tmp_path / "begun").exists)
    assert future.state == {"n": 3, "total": None, "status": "running"}
    assert not future.done()
    open_gate(gate)
    assert future.result() is None


# Cancelling


def test_a_worker_remembers_what_has_ended_for_a_while_only(executor, cluster, monkeypatch):
    future = executor.submit(jobs.add, 1)
    future.result()
    topic, reasons = executor._topic, {future._task.number: None}
    relays = [relay.Relay.of(worker) for worker in cluster.workers.values()]
    assert sorted(each.cancel(topic, reasons) for each in relays) == [([], []), ([], [*reasons])]
    monkeypatch.setattr(relay, "_REMEMBERED", 0)
    assert [each.cancel(topic, reasons) for each in relays] == [([], [])] * 2


def test_a_pending_task_that_is_cancelled_is_never_entered(client, gate, tmp_path):
    with DaskProgressExecutor(client) as executor:
        blockers = [executor.submit(jobs.step_until, gate) for _ in range(4)]
        until(lambda: all(blocker.running() for blocker in blockers))
        futures = [executor.submit(jobs.note_and_wait, str(tmp_path / "entered"), gate) for _ in range(100)]
        assert all(future.cancel() for future in futures)
        until(lambda: all(future.cancelled() for future in futures))
        assert not any(blocker.done() for blocker in blockers)
        open_gate(gate)
        concurrent.futures.wait(blockers)
    assert not (tmp_path / "entered").exists()


def test_a_pending_task_that_was_cancelled_is_not_begun_by_a_worker_that_comes_later(cluster, client, gate, tmp_path):
    with DaskProgressExecutor(client) as executor:
        blockers = [executor.submit(jobs.step_until, gate) for _ in range(4)]
        until(lambda: all(blocker.running() for blocker in blockers))
        futures = [executor.submit(jobs.note_and_wait, str(tmp_path / "entered"), gate) for _ in range(5)]
        for future in futures:
            future.cancel()
        until(lambda: all(future.cancelled() for future in futures))
        until(lambda: len(cluster.scheduler.tasks) == 4, "Dask's forgetting them")
        cluster.scale(3)
        client.wait_for_workers(3)
        assert executor.submit(jobs.add, 1).result() == 2
        open_gate(gate)
    assert not (tmp_path / "entered").exists()


def test_everything_ends_though_tasks_end_while_others_are_cancelled(client):
    for _ in range(3):
        executor = DaskProgressExecutor(client)
        waiting = [executor.submit(jobs.add, 1, resources={"none such": 1}) for _ in range(200)]
        ending = [executor.submit(jobs.add, 1) for _ in range(100)]
        until(lambda: any(future.done() for future in ending))  # noqa: B023
        executor.shutdown(cancel_futures=True)
        assert all(future.cancelled() for future in waiting)
        assert all(future.done() for future in ending)


def test_workers_are_asked_again_when_the_asking_failed(executor, client, monkeypatch):
    run, failures = client._run, [OSError("lost"), TimeoutError()]

    async def fail_twice(*args, **kwargs):
        if failures:
            raise failures.pop()
        return await run(*args, **kwargs)

    monkeypatch.setattr(client, "_run", fail_twice)
    future = executor.submit(jobs.add, 1, resources={"none such": 1})
    assert future.cancel()
    until(future.cancelled)
    assert not failures


class FutureOfDask:
    def __init__(self, status):
        self.status = status

    def release(self):
        pass


@pytest.mark.parametrize("status", ["pending", "lost", "cancelled", "finished", "error"])
@pytest.mark.parametrize("answer", ["running", "ended", "nowhere", OSError("silent"), ImportError("no such package")])
def test_it_is_cancelled_when_no_worker_has_it_and_no_outcome_is_on_the_way(status, answer, executor, client, monkeypatch):
    nowhere, asked = ([], []), []

    async def run(function, topic, reasons, **kwargs):
        asked.append(reasons)
        answers = {"running": ([*reasons], []), "ended": ([], [*reasons]), "nowhere": nowhere}
        return {"one": nowhere, "other": answers.get(answer, answer)}

    monkeypatch.setattr(client, "_run", run)
    monkeypatch.setattr("progress_executor._executors.dask._AGAIN", 0.001)
    future = executor.submit(jobs.add, 1, resources={"none such": 1})
    tell(future, 1, 10)
    task, dask_future = future._task, future._task.dask_future
    task.dask_future = FutureOfDask(status)
    assert future.cancel()
    if answer in ("running", "ended") and (answer, status) != ("ended", "cancelled"):
        ends = False
    else:
        ends = not isinstance(answer, OSError) and status not in ("finished", "error")
    if not ends:
        until(lambda: len(asked) > 2)
        assert not future.done()
        task.dask_future, answer = FutureOfDask("cancelled"), "nowhere"
    until(future.cancelled)
    assert future.state == {"n": 10, "total": None, "status": "cancelled"}
    assert len(asked) == 1 or not ends
    dask_future.release()


def test_workers_that_answer_slowly_are_waited_for_longer_each_time(client, monkeypatch):
    monkeypatch.setattr("progress_executor._executors.dask._PATIENCE", (0.01, DEADLINE))
    monkeypatch.setattr("progress_executor._executors.dask._AGAIN", 0.001)
    run = client._run

    async def run_slowly(*args, **kwargs):
        await asyncio.sleep(0.1)
        return await run(*args, **kwargs)

    monkeypatch.setattr(client, "_run", run_slowly)
    with DaskProgressExecutor(client) as executor:
        future = executor.submit(jobs.add, 1, resources={"none such": 1})
        assert future.cancel()
        until(future.cancelled)


def test_what_begins_when_all_are_to_stop_is_stopped(client, gate):
    executor = DaskProgressExecutor(client)
    executor._cancel_all()  # another thread leaves by Ctrl-C
    future = executor.submit(jobs.step_until, gate)
    until(future.cancelled)
    executor.shutdown()


def test_cancelled_is_true_only_when_the_task_has_stopped(executor, gate, tmp_path):
    future = executor.submit(stop_slowly, gate, str(tmp_path / "stopping"))
    until(lambda: future.state["n"] > 0)
    assert future.cancel()
    until((tmp_path / "stopping").exists)
    time.sleep(0.3)
    assert future.running()
    assert future.cancel_requested()
    open_gate(gate)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


def stop_slowly(gate, stopping, progress):
    try:
        while True:
            progress.update()
            time.sleep(0.001)
    finally:
        Path(stopping).touch()
        jobs.wait_for(gate)


def test_what_a_cancelled_task_returns_all_the_same_is_kept(executor):
    future = executor.submit(jobs.return_when_cancelled, "kept")
    until(lambda: future.state["n"] > 0)
    assert future.cancel()
    assert future.result() == "kept"
    assert not future.cancelled()


def test_who_cancels_with_dask_stops_the_task_too(cluster, executor, gate):
    future = executor.submit(jobs.step_until, gate, key="theirs")
    until(lambda: future.state["n"] > 0)
    with distributed.Client(cluster, set_as_default=False) as other:
        other.cancel([distributed.Future("theirs", other)], force=True)
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(DEADLINE)
    assert future.cancelled()
    assert future.state["status"] == "cancelled"


def test_a_client_that_goes_takes_its_tasks_along(cluster, gate, tmp_path):
    with distributed.Client(cluster, set_as_default=False) as client:
        executor = DaskProgressExecutor(client)
        future = executor.submit(stop_slowly, gate, str(tmp_path / "stopping"))
        pending = [executor.submit(jobs.step_until, gate) for _ in range(10)]
        until(lambda: future.state["n"] > 0)
    until((tmp_path / "stopping").exists, "the end of the task")
    for lost in (future, *pending):
        with pytest.raises(ConnectionError):
            lost.result(DEADLINE)
    open_gate(gate)
    executor.shutdown()


# Clients


def test_two_executors_on_one_client_and_two_clients_of_one_cluster_do_not_hear_each_other(cluster, client, gate):
    with (
        distributed.Client(cluster, set_as_default=False) as other,
        DaskProgressExecutor(client) as first,
        DaskProgressExecutor(client) as second,
        DaskProgressExecutor(other) as third,
    ):
        futures = [executor.submit(jobs.count, n) for n, executor in enumerate((first, second, third), 1)]
        states = [watch(future) for future in futures]
        assert [future.result() for future in futures] == [1, 2, 3]
        assert [told[-1][1]["n"] for told in states] == [1, 2, 3]
        stopped, goes_on = first.submit(jobs.step_until, gate), second.submit(jobs.step_until, gate)
        until(lambda: stopped.running() and goes_on.running())
        assert stopped.cancel()
        until(stopped.cancelled)
        assert not goes_on.cancel_requested()
        open_gate(gate)
        assert goes_on.result() > 0


def test_a_shut_down_executor_leaves_its_client_to_the_caller(client):
    with DaskProgressExecutor(client) as executor:
        executor.submit(jobs.count, 3)
    assert client.submit(jobs.add, 1).result() == 2
    with pytest.raises(RuntimeError):
        executor.submit(jobs.count, 3)


def test_an_asynchronous_client(cluster):
    async def main():
        async with (
            distributed.Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as client,
            DaskProgressExecutor(client) as executor,
        ):
            future = executor.submit(jobs.count_slowly, 30, 0.01)
            states = watch(future)
            for wait in (future.result, lambda: concurrent.futures.wait([future]), executor.shutdown):
                with pytest.raises(RuntimeError, match="await"):
                    wait()
            assert await future == 30
            assert len(states) > 2
            endless = executor.submit(jobs.step_until, "/never/there")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(endless.check_for_progress(), 0.3)
        assert endless.cancelled()

    asyncio.run(main())


def test_tasks_that_outlive_the_loop_of_their_client_are_a_connection_error(cluster, gate):
    async def main():
        client = await distributed.Client(cluster.scheduler_address, asynchronous=True, set_as_default=False)
        executor = DaskProgressExecutor(client)
        future = executor.submit(jobs.step_until, gate)
        while not future.running():
            await asyncio.sleep(0.01)
        return executor, future, client

    executor, future, client = asyncio.run(main())
    with pytest.raises(ConnectionError, match="event loop"):
        future.result(DEADLINE)
    executor.shutdown()
    client.status = "closed"  # nobody can close it any more; at exit it would try
    open_gate(gate)


@pytest.mark.parametrize("now", [100.0, 100.01, 100.049, 100.051, 100.09999, 1.8e9 + 0.06])
def test_all_workers_tell_at_the_same_moments_and_none_twice_at_one(now):
    pause = relay._until_next_tick(now)
    assert INTERVAL / 2 < pause <= INTERVAL * 3 / 2
    assert round((now + pause) / INTERVAL, 4) % 1 == 0


def test_of_a_large_result_there_are_no_more_copies_than_its_pickle(executor):
    size = 30_000_000
    tracemalloc.start()
    try:
        assert len(executor.submit(bytes, size).result()) == size
        assert tracemalloc.get_traced_memory()[1] < 2.7 * size  # it, and its pickle with some room to grow
    finally:
        tracemalloc.stop()


def test_what_is_being_fetched_is_not_forgotten(executor, client, monkeypatch):
    gather, waiting = client._gather, []

    async def wait(futures, **kwargs):
        if not waiting:
            future = asyncio.get_running_loop().create_future()
            waiting.append(weakref.ref(future))  # and nobody else knows it, nor who waits for it
            await future
        return await gather(futures, **kwargs)

    monkeypatch.setattr(client, "_gather", wait)
    future = executor.submit(jobs.add, 1)
    until(lambda: waiting and not executor._gathering)
    gc.collect()
    assert waiting[0]() is not None
    client.loop.add_callback(lambda: waiting[0]().set_result(None))
    assert future.result(DEADLINE) == 2


def test_a_result_that_was_lost_with_its_worker_holds_up_no_other(executor, client, monkeypatch, gate):
    gather, lost = client._gather, []

    async def lose_the_first(futures, **kwargs):
        if not lost:
            lost.append(futures[0].key)
            await asyncio.to_thread(jobs.wait_for, gate)  # as for the run again
        return await gather(futures, **kwargs)

    monkeypatch.setattr(client, "_gather", lose_the_first)
    first = executor.submit(jobs.add, 1)
    until(lambda: lost)
    assert executor.submit(jobs.add, 2).result(DEADLINE) == 3
    assert not first.done()
    open_gate(gate)
    assert first.result(DEADLINE) == 2


def test_a_result_that_was_lost_holds_up_none_that_is_fetched_with_it(executor, client, monkeypatch, gate, tmp_path):
    gather, batches, lost = client._gather, [], []
    both_gate = str(tmp_path / "both")

    async def lose_the_first(futures, **kwargs):
        keys = [future.key for future in futures]
        if not batches:  # hold it until two others have arrived
            batches.append(keys)
            await asyncio.to_thread(jobs.wait_for, both_gate)
        elif len(keys) > 1:
            batches.append(keys)
            lost.append(keys[0])
            raise OSError("lost")
        elif keys == lost:
            await asyncio.to_thread(jobs.wait_for, gate)  # as for the run again
        return await gather(futures, **kwargs)

    monkeypatch.setattr(client, "_gather", lose_the_first)
    monkeypatch.setattr("progress_executor._executors.dask.INTERVAL", DEADLINE)
    executor.submit(jobs.add, 0)
    until(lambda: batches)
    futures = [executor.submit(jobs.add, n) for n in (1, 2)]
    until(lambda: len(executor._arrived) == 2)
    open_gate(both_gate)
    until(lambda: sum(future.done() for future in futures) == 1)
    open_gate(gate)
    assert [future.result(DEADLINE) for future in futures] == [2, 3]


def test_a_connection_that_is_lost_while_outcomes_are_fetched_is_a_connection_error(cluster, monkeypatch):
    with distributed.Client(cluster, set_as_default=False) as client:
        executor, fetching = DaskProgressExecutor(client), threading.Event()

        async def close_first(futures, **kwargs):
            fetching.set()
            while client.status == "running":
                await asyncio.sleep(0.01)
            raise distributed.comm.CommClosedError

        monkeypatch.setattr(client, "_gather", close_first)
        future = executor.submit(jobs.add, 1)
        assert fetching.wait(DEADLINE)
    with pytest.raises(ConnectionError):
        future.result(DEADLINE)
    executor.shutdown()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl, which is not here")
def test_over_tls(tmp_path, gate):
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    files = {
        f"tls_{role}_{what}": file
        for role in ("scheduler", "worker", "client")
        for what, file in (("key", key), ("cert", certificate))
    }
    security = distributed.Security(tls_ca_file=certificate, require_encryption=True, **files)
    with (
        distributed.LocalCluster(n_workers=1, security=security, protocol="tls", **LOCAL) as cluster,
        distributed.Client(cluster, security=security, set_as_default=False) as client,
        DaskProgressExecutor(client) as executor,
    ):
        assert client.scheduler.address.startswith("tls://")
        assert executor.submit(jobs.count, 3).result() == 3
        future = executor.submit(jobs.step_until, gate)
        until(lambda: future.state["n"] > 0)
        assert future.cancel()
        until(future.cancelled)


def test_a_done_callback_may_wait_for_anything_of_dasks(executor, client):
    found = []
    future = executor.submit(jobs.count, 3)
    future.add_done_callback(lambda _: found.append(client.submit(jobs.add, 1).result()))
    future.result()
    until(lambda: found == [2])


def test_a_done_callback_cannot_wait_for_its_own_executor(client, gate, tmp_path):
    other_gate = tmp_path / "other"
    with DaskProgressExecutor(client) as executor:
        future, found = executor.submit(jobs.wait_for, str(other_gate)), []
        other = executor.submit(jobs.step_until, gate)

        def wait(_):
            for waiting in (other.result, executor.shutdown, lambda: concurrent.futures.wait([other])):
                try:
                    waiting()
                except RuntimeError as error:
                    found.append(str(error))
            found.append(future.result())

        future.add_done_callback(wait)
        open_gate(other_gate)
        until(lambda: len(found) == 4)
        open_gate(gate)
        assert all("done callback" in text for text in found[:3])


def test_what_is_submitted_while_the_client_closes_is_refused_or_a_connection_error(cluster):
    for _ in range(3):
        client, futures, refused = distributed.Client(cluster, set_as_default=False), [], []
        executor = DaskProgressExecutor(client)

        def submit_on(executor=executor, futures=futures, refused=refused):
            try:
                while True:
                    futures.append(executor.submit(jobs.add, 1))
            except ConnectionError as error:
                refused.append(error)

        submitting = threading.Thread(target=submit_on)
        submitting.start()
        until(lambda: len(futures) > 20)  # noqa: B023
        client.close()
        submitting.join(DEADLINE)
        assert refused
        assert not concurrent.futures.wait(futures, DEADLINE).not_done
        assert {type(future.exception()) for future in futures} <= {type(None), ConnectionError}
        executor.shutdown()


def test_what_is_submitted_as_the_client_closes_and_dropped_is_a_connection_error(executor, client, monkeypatch):
    submit = client.submit

    def close_and_submit(*args, **kwargs):
        client.status = "closing"  # by another thread
        return submit(*args, **kwargs)

    with monkeypatch.context() as closing:
        closing.setattr(client, "submit", close_and_submit)
        closing.setattr(client, "_send_to_scheduler", lambda message: None)  # it is dropped, and nobody told
        with pytest.raises(ConnectionError):
            executor.submit(jobs.add, 1).result(DEADLINE)
        until(lambda: not client.futures)
    client.status = "running"


def test_a_client_that_is_closed_just_before_dasks_own_submit_is_a_connection_error(cluster, monkeypatch):
    client = distributed.Client(cluster, set_as_default=False)
    with DaskProgressExecutor(client) as executor:
        submit = client.submit

        def close_and_submit(*args, **kwargs):
            client.close()  # by another thread
            return submit(*args, **kwargs)

        monkeypatch.setattr(client, "submit", close_and_submit)
        with pytest.raises(ConnectionError):
            executor.submit(jobs.add, 1)


def test_two_threads_that_pause_at_once_are_both_heard(executor, gate):
    future = executor.submit(jobs.step_until, gate)
    until(lambda: future.state["n"])
    together = threading.Barrier(2)

    class Appending(collections.deque):
        def append(self, task):
            super().append(task)
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(1)

    executor._to_instruct = Appending()
    for paused in (True, False):
        threads = [threading.Thread(target=future.pause if paused else future.resume) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: (future.state["status"] == "paused") == paused)  # noqa: B023
    open_gate(gate)
    assert future.result(DEADLINE) > 0


def test_workers_are_told_again_to_go_on_when_the_telling_failed(executor, client, gate, monkeypatch):
    future = executor.submit(jobs.step_until, gate)
    until(lambda: future.state["n"])
    future.pause()
    until(lambda: future.state["status"] == "paused")
    run, failed = client._run, []

    async def fail_first(*args, **kwargs):
        if len(failed) < 2:
            failed.append(args)
            if len(failed) == 1:
                raise OSError("lost")
            return {"a worker": OSError("lost")}
        return await run(*args, **kwargs)

    monkeypatch.setattr(client, "_run", fail_first)
    future.resume()
    until(lambda: future.state["status"] == "running")
    open_gate(gate)
    assert future.result(DEADLINE) > 0


def test_one_executor_after_the_other_leaves_the_scheduler_one_topic(cluster, client):
    topics = set()
    for _ in range(3):
        with DaskProgressExecutor(client) as executor:
            topics.add(executor._topic)
            future = executor.submit(jobs.count_slowly, 30, 0.01)
            states = watch(future)
            assert future.result() == 30
            assert len(states) > 2
    assert len(topics) == 1


def test_a_scheduler_that_is_lost_is_a_connection_error_and_its_workers_stop_the_tasks(gate):
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.comm.timeouts.connect": "1s"}))  # what the cluster's end takes
        cluster = stack.enter_context(distributed.LocalCluster(n_workers=1, threads_per_worker=1, **LOCAL))
        client = stack.enter_context(distributed.Client(cluster.scheduler_address, timeout=1, set_as_default=False))
        executor = DaskProgressExecutor(client)
        futures = [executor.submit(jobs.step_until, gate) for _ in range(3)]
        states = watch(futures[0])
        until(lambda: futures[0].state["n"] > 0)
        cluster.sync(cluster.scheduler.close)
        for future in futures:
            with pytest.raises(ConnectionError):
                future.result(DEADLINE)
        assert states[-1][1]["status"] == "failed"
        assert states[-1][1]["n"] > 0
        executor.shutdown()
    assert time.monotonic() - began < 10  # the cluster's end waits for half a minute for tasks that do not stop


def test_ctrl_c_in_the_with_block_stops_the_tasks_on_the_workers(client, gate):
    with pytest.raises(KeyboardInterrupt), DaskProgressExecutor(client) as executor:
        futures = [executor.submit(jobs.step_until, gate) for _ in range(20)]
        until(lambda: futures[0].state["n"] > 0)
        raise KeyboardInterrupt
    assert all(future.cancelled() for future in futures)


@pytest.mark.parametrize("where", ["_follow", "_ask", "_instruct_workers"])
def test_ctrl_c_before_the_event_loop_hears_of_it_leaves_nothing_undone(where, client, gate, monkeypatch):
    add_callback = client.loop.add_callback

    def interrupt(function, *args):
        if function.__name__ == where:
            monkeypatch.undo()
            if where == "_follow":
                (task,) = args
                until(lambda: task.dask_future.status == "finished")
            signal.raise_signal(signal.SIGINT)
        add_callback(function, *args)

    with pytest.raises(KeyboardInterrupt), DaskProgressExecutor(client) as executor:
        if where != "_follow":
            future = executor.submit(jobs.step_until, gate)
            until(future.running)
        monkeypatch.setattr(client.loop, "add_callback", interrupt)
        try:
            if where == "_follow":
                executor.submit(jobs.add, 1)
            elif where == "_ask":
                future.cancel()
            else:
                future.pause()
        except KeyboardInterrupt:
            if where == "_instruct_workers":
                future.pause()
                until(lambda: future.state["status"] == "paused")
            raise
    assert not executor._tasks


# Real processes


class Processes:
    """A scheduler and two workers of two threads, started as users do, listening on loopback."""

    def __init__(self, folder):
        self._folder = folder
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.workers = []

    def _start(self, *arguments):
        command = [sys.executable, "-m", "dask", *arguments, "--host", "127.0.0.1", "--no-dashboard"]
        log = open(self._folder / f"{arguments[0]}.log", "ab")  # noqa: SIM115
        with log:
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, cwd=self._folder)

    def __enter__(self):
        file = self._folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(file))
        until(file.exists, "the scheduler")
        until(lambda: file.read_text().endswith("}"))
        self.client = distributed.Client(scheduler_file=str(file), timeout=5, set_as_default=False)
        for _ in range(2):
            self.add_worker()
        return self

    def add_worker(self):
        folder = self._folder / f"worker {len(self.workers)}"
        options = ["--nthreads", "2", "--no-nanny", "--local-directory", str(folder)]
        self.workers.append(self._start("worker", self.client.scheduler.address, *options))
        alive = sum(worker.poll() is None for worker in self.workers)
        self.client.wait_for_workers(alive, timeout=DEADLINE)

    def __exit__(self, *exc_info):
        with contextlib.suppress(Exception):
            self.client.close(timeout=1)
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path) as processes:
        yield processes


@pytest.mark.slow
def test_a_killed_worker_has_its_tasks_start_again_elsewhere(processes, gate):
    with DaskProgressExecutor(processes.client) as executor:
        futures = [executor.submit(jobs.report_pid, gate) for _ in range(4)]
        states = [watch(future) for future in futures]
        until(lambda: all(future.state["n"] > 20 for future in futures))
        concurrent.futures.wait(futures, timeout=0.2)
        victim = processes.workers[0]
        lost = [future for future in futures if future.state["status"] == str(victim.pid)]
        assert len(lost) == 2
        victim.kill()
        until(
            lambda: (
                processes_of(futures) == {str(processes.workers[1].pid)} or concurrent.futures.wait(futures, timeout=0.05)
            )
        )
        open_gate(gate)
        assert [future.result(DEADLINE) for future in futures] == [future.state["n"] for future in futures]
        fallen = [any(new["n"] < old["n"] for old, new in told) for told in states]
        assert fallen == [future in lost for future in futures]


def processes_of(futures):
    return {future.state["status"] for future in futures if future.running()}


@pytest.mark.slow
def test_a_task_that_kills_its_workers_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")
    with Processes(tmp_path) as processes, DaskProgressExecutor(processes.client) as executor:
        future = executor.submit(jobs.kill_oneself)
        assert isinstance(future.exception(DEADLINE), distributed.KilledWorker)


@pytest.mark.slow
def test_a_task_whose_worker_is_killed_while_it_is_to_stop_is_cancelled(processes, gate):
    with DaskProgressExecutor(processes.client) as executor:
        futures = [executor.submit(jobs.report_pid_and_wait, gate) for _ in range(4)]
        until(lambda: len(processes_of(futures)) == 2 and "running" not in processes_of(futures))
        for future in futures:
            future.cancel()
        processes.workers[0].kill()
        until(lambda: sum(future.cancelled() for future in futures) == 2)
        open_gate(gate)
        concurrent.futures.wait(futures, timeout=DEADLINE)
        assert all(future.cancelled() for future in futures)


@pytest.mark.slow
def test_a_frozen_worker_goes_on_where_it_was(processes, gate):
    with DaskProgressExecutor(processes.client) as executor:
        futures = [executor.submit(jobs.report_pid, gate) for _ in range(4)]
        until(lambda: all(future.state["n"] > 0 for future in futures))
        victim = processes.workers[0]
        victim.send_signal(signal.SIGSTOP)
        frozen = [future for future in futures if future.state["status"] == str(victim.pid)]
        assert frozen[0].cancel()
        others = [future for future in futures if future not in frozen]
        assert others[0].cancel()
        until(others[0].cancelled)
        assert frozen[0].running()
        victim.send_signal(signal.SIGCONT)
        until(frozen[0].cancelled)
        open_gate(gate)
        assert frozen[1].result(DEADLINE) > 0
        assert others[1].result(DEADLINE) > 0


@pytest.mark.slow
def test_a_killed_scheduler_is_a_connection_error(processes, gate):
    with DaskProgressExecutor(processes.client) as executor:
        futures = [executor.submit(jobs.step_until, gate) for _ in range(6)]
        until(lambda: futures[0].state["n"] > 0)
        processes.scheduler.kill()
        for future in futures:
            with pytest.raises(ConnectionError):
                future.result(DEADLINE)


@pytest.mark.slow
def test_retired_workers_hand_over_what_they_have_not_begun(processes, gate):
    with DaskProgressExecutor(processes.client) as executor:
        futures = [executor.submit(jobs.report_pid, gate) for _ in range(12)]
        until(lambda: sum(future.running() for future in futures) == 4)
        retiring = threading.Thread(target=processes.client.retire_workers, kwargs={"workers": [a_worker(processes)]})
        retiring.start()
        open_gate(gate)
        assert all(future.result(DEADLINE) >= 0 for future in futures)
        retiring.join()


def a_worker(processes):
    return next(iter(processes.client.scheduler_info()["workers"]))


@pytest.mark.slow
def test_a_paused_worker_starts_nothing_and_its_tasks_can_be_cancelled(processes, gate):
    with DaskProgressExecutor(processes.client) as executor:
        address = a_worker(processes)

        def pause(dask_worker):
            dask_worker.memory_manager.memory_pause_fraction = 1e-9  # of which it has more in use: it pauses by itself

        def is_paused(dask_worker):
            return dask_worker.status.name == "paused"

        processes.client.run(pause, workers=[address])
        until(lambda: processes.client.run(is_paused, workers=[address])[address])
        future = executor.submit(jobs.step_until, gate, workers=[address])
        with pytest.raises(TimeoutError):
            future.result(0.5)
        assert not future.running()
        assert future.cancel()
        until(future.cancelled)


@pytest.mark.slow
def test_a_local_cluster_of_its_own_is_closed_with_the_executor(gate):
    with DaskProgressExecutor() as executor:
        pids = list(executor.client.run(os.getpid).values())
        assert os.getpid() not in pids
        assert executor.submit(jobs.count, 1000).result() == 1000
        futures = [executor.submit(jobs.step_until, gate) for _ in range(10)]
        until(lambda: futures[0].running())
        executor.client.restart()
        for future in futures:
            with pytest.raises(concurrent.futures.CancelledError):
                future.result(DEADLINE)
        assert executor.submit(jobs.count, 10).result(DEADLINE) == 10
    assert executor.client.status == "closed"


# The demonstration


@pytest.fixture
def vast(tmp_path):
    """Two folders that take seconds, without taking room on the disk."""
    for name in ("large", "vast"):
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "zeros", "wb") as file:
            file.truncate(1 << 30)
    return tmp_path


def demonstration(*arguments, cwd):
    command = [sys.executable, "-W", "error", "-m", "progress_executor", "--executor", "dask", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(progress_executor.__file__).parents[1])}
    return Terminal(command, env=environment, cwd=cwd)


def running(processes):
    """How many tasks run on the workers."""
    return sum(processes.client.run(lambda dask_worker: len(dask_worker.state.executing)).values())


@pytest.mark.slow
def test_the_demonstration_prints_the_same_digests_on_a_local_cluster(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"1" * 3_000_000)
    with demonstration("--workers", "2", "folder", cwd=tmp_path) as screen:
        assert screen.finish() == 0
        assert [line for line in screen.lines if line] == [expected_line(tmp_path / "folder").replace(f"{tmp_path}/", "")]


@pytest.mark.slow
def test_the_demonstration_survives_a_killed_worker(processes, vast):
    with demonstration("--scheduler", processes.client.scheduler.address, "large", "vast", cwd=vast) as screen:
        screen.wait_for(lambda screen: percentage(screen, "large") and percentage(screen, "vast"))
        processes.workers[0].kill()
        assert screen.finish() == 0
        digest = expected_line(vast / "large").split()[0]
        lines = [f"{digest}  {name}: 1 files, {1 << 30} bytes" for name in ("large", "vast")]
        assert [line for line in screen.lines if line] == lines


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "scheduler"])
def test_ctrl_c_in_the_demonstration_stops_the_tasks_on_the_workers(where, processes, vast):
    options = ["--workers", "2"] if where == "local" else ["--scheduler", processes.client.scheduler.address]
    with demonstration(*options, "large", "vast", cwd=vast) as screen:
        screen.wait_for(lambda screen: percentage(screen, "large") and percentage(screen, "vast"))
        screen.interrupt()
        assert screen.finish() == 130
        assert not re.search(r"Traceback|Exception ignored|Warning", screen.output), screen.output
        assert [line.split()[0] for line in screen.lines if line] == ["cancelled", "cancelled", "progress_executor:"]
        until(lambda: not screen.processes(), "the end of all processes")
    until(lambda: not running(processes), "the end of the tasks")


def test_the_demonstration_complains_in_one_line_when_there_is_no_scheduler(tmp_path):
    done = demo("--executor", "dask", "--scheduler", "127.0.0.1:1", tmp_path, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="1s")
    assert re.fullmatch(r"progress_executor: .*127\.0\.0\.1:1.*\n", done.stderr)
    assert done.stdout == ""
    assert done.returncode == 1


@pytest.mark.slow
def test_the_demonstration_tells_what_it_has_when_the_scheduler_is_lost(processes, vast):
    (vast / "small").mkdir()
    folders = ["vast", "small", "large"]
    with demonstration("--scheduler", processes.client.scheduler.address, *folders, cwd=vast) as screen:
        screen.wait_for(
            lambda screen: "1 done" in screen.text and percentage(screen, "large") and percentage(screen, "vast")
        )
        processes.scheduler.kill()
        assert screen.finish() == 1
        digest = expected_line(vast / "small").split()[0]
        *lines, complaint = [line for line in screen.lines if line]
        assert [line.split()[:2] for line in lines] == [["failed", "vast"], [digest, "small:"], ["failed", "large"]]
        assert complaint == "progress_executor: the connection to the Dask scheduler was lost"
