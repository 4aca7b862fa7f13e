"""Fixtures: executors of every kind, and the proof after each test that it left nothing behind."""

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tqdm

from progress_executor import ProcessPoolProgressExecutor, SyncProgressExecutor, ThreadPoolProgressExecutor
from progress_executor._slots import Slot

DEADLINE = 30
"""Seconds after which a wait for an event has failed; no test passes by waiting that long."""

DASK = importlib.util.find_spec("distributed") is not None
POOLS = ["thread", "process"]
LOCAL = [*POOLS, "sync"]
CONCURRENT = [*POOLS, *(["dask"] if DASK else [])]
KINDS = [*CONCURRENT, "sync"]
START_METHODS = ["fork", "forkserver", "spawn"]
EACH_POOL = [*(kind for kind in CONCURRENT if kind != "process"), *START_METHODS]
IMPLEMENTATIONS = {
    "python": "progress_executor._speedups._updater",
    "cython": "progress_executor._speedups._updater_c",
}


# A shell ignores SIGINT in what it starts in the background, and programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests with timers put back: an alarm that came in another thread may reach Python later than that, which complains
# ("ignored due to race condition") where it finds no handler then. A child that an alarm is to end needs SIG_DFL.
if hasattr(signal, "SIGALRM"):
    signal.signal(signal.SIGALRM, lambda *_: None)


if hasattr(signal, "SIGXCPU"):

    @pytest.hookimpl(optionalhook=True)
    def pytest_timeout_set_timer(item, settings):
        """Fail a test that hangs, and go on with the next: by a signal, but not by SIGALRM, which tests use."""
        import pytest_timeout

        timer = threading.Timer(settings.timeout, signal.pthread_kill, [threading.main_thread().ident, signal.SIGXCPU])
        timer.daemon = True
        signal.signal(signal.SIGXCPU, lambda *_: pytest_timeout.timeout_sigalrm(item, settings))

        def cancel():
            timer.cancel()
            timer.join()  # tests count threads

        item.cancel_timeout = cancel
        timer.start()
        return True


# tqdm makes it with the first bar, and keeps it: a semaphore, which is in /dev/shm.
tqdm.tqdm.get_lock()


if DASK:
    from distributed import Client, LocalCluster

    from progress_executor import DaskProgressExecutor


def until(condition, what="the condition"):
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.001)


_clusters = {}


def cluster(threads):
    """A Dask cluster in this process, with one worker of so many threads, for all tests of a module."""
    if threads not in _clusters:
        _clusters[threads] = local_cluster(n_workers=1, threads_per_worker=threads)
    return _clusters[threads]


def local_cluster(**options):
    """A Dask cluster in this process."""
    cluster = LocalCluster(processes=False, dashboard_address="127.0.0.1:0", **options)
    cluster.loop.asyncio_loop.set_debug(False)  # with -X dev it is: Dask's own loop then takes ten times as long
    return cluster


@pytest.fixture(scope="module", autouse=True)
def _close_clusters():
    yield
    while _clusters:
        _clusters.popitem()[1].close()


def make_executor(kind, max_workers=2, **kwargs):
    if kind == "sync":
        return SyncProgressExecutor()
    if kind == "thread":
        return ThreadPoolProgressExecutor(max_workers, **kwargs)
    if kind == "dask":
        executor = DaskProgressExecutor(Client(cluster(max_workers), set_as_default=False))
        executor._owns_client = True
        return executor
    if kind in START_METHODS:
        kwargs["mp_context"] = multiprocessing.get_context(kind)
    return ProcessPoolProgressExecutor(max_workers, **kwargs)


@pytest.fixture(params=KINDS)
def executor(request):
    """Each executor in turn."""
    with make_executor(request.param) as executor:
        yield executor


@pytest.fixture(params=CONCURRENT)
def pool(request):
    """Each executor whose tasks run while the caller does something else."""
    with make_executor(request.param) as executor:
        yield executor


@pytest.fixture(params=POOLS)
def local_pool(request):
    """Those of them that cancel a pending task at once: Dask's workers have to be asked first."""
    with make_executor(request.param) as executor:
        yield executor


@pytest.fixture(params=EACH_POOL)
def each_pool(request):
    """Those of `pool`, with each way to start processes."""
    with make_executor(request.param) as executor:
        yield executor
        executor._cancel_all()  # what a test that failed has left standing, for which the end would wait


def load(implementation):
    """The class `Updater`, in one form."""
    name = IMPLEMENTATIONS[implementation]
    try:
        return importlib.import_module(name).Updater
    except ModuleNotFoundError as error:
        if implementation == "python" or error.name != name:
            raise
        pytest.skip("the compiled form, _updater_c, was not built")


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def updater(request):
    """The class `Updater`, in each form."""
    return load(request.param)


@pytest.fixture
def slot():
    """That of a task that has begun."""
    slot = Slot()
    slot.start(time.time())
    return slot


@pytest.fixture
def gate(tmp_path):
    """A file that is not there yet; a task waits for it, `open_gate(gate)` lets it go."""
    path = tmp_path / "gate"
    yield str(path)
    path.touch()


def open_gate(gate):
    Path(gate).touch()


def in_shm():
    """The files in /dev/shm that this process maps; none where there is no /proc."""
    try:
        with open("/proc/self/maps") as file:
            return {line.split()[-1] for line in file if "/dev/shm/" in line and "(deleted)" not in line}
    except FileNotFoundError:
        return set()


def session(leader):
    """The ids of the living processes of a session; none where there is no /proc."""
    found = []
    if not os.path.isdir("/proc"):
        return found
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as file:
            state, _, _, owner = file.read().rpartition(")")[2].split()[:4]
            if int(owner) == leader and state != "Z":
                found.append(int(pid))
    return found


def alive(pid):
    """Whether there is this process, and it is no zombie; False where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or after
        return False


@pytest.fixture(autouse=True)
def _nothing_left_behind():
    threads, shared = set(threading.enumerate()), in_shm()
    yield
    until(lambda: not multiprocessing.active_children(), "the end of all workers")
    assert in_shm() <= shared
    until(
        lambda: not [thread for thread in set(threading.enumerate()) - threads if not thread.daemon],
        "the end of all threads",
    )
