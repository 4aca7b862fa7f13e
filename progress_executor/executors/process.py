"""`ProcessPoolProgressExecutor`: the standard library's process pool; the slots are in one shared-memory segment.

caller                                     worker
submit -> ProcessTask -> manager thread
          -> feeder thread: pickled, ----> RemoteTask: Updater on the slot
             claims a slot                    |  writes n, total, status
state, callbacks <------ slot --------------- +
cancel() --------------> slot: control -----> the next progress call raises
done: final state read, slot released <---- result, through the pool's own queue
"""

import contextlib
import io
import itertools
import multiprocessing.process
import operator
import os
import signal
import threading
import weakref
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import _ExecutorManagerThread
from contextlib import contextmanager
from copy import copy
from functools import partial
from multiprocessing import connection, forkserver, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from pickle import Pickler, PicklingError, loads
from time import time
from typing import Any, TypeVar

from .._speedups import Updater
from ..ambient import current
from ..arena import Arena, Segment, start_tracker
from ..delivery import Board
from ..futures import ProgressFuture
from ..interrupts import SigintDeferred
from ..slots import Slot
from ..state import ProgressState
from ..tasks import Call, Task, takes_progress
from .base import ProgressExecutor, executors_to_leave, leave_all

T = TypeVar("T")


class ProcessTask(Task):
    """Claims its slot when it is pickled for a worker, in the feeder thread of the pool's call queue.

    A slot serves another task as soon as this one has ended: the board's lock keeps them apart.
    """

    index: int | None = None
    reports = False

    def __init__(self, board: Board, call: Call, arena: Arena) -> None:
        self.board = board
        self.call = call
        self.arena = arena

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        call = self.call
        if call is None or self.cancel_requested:
            return RemoteTask, (None, False, b"")
        pickled = _dumps(call)  # apart, so that it can fail by itself, here as in the worker
        self.reports = takes_progress(call)
        index, slot = self.arena.claim()
        with self.board.lock:
            if self._final is not None or not self.start(slot, None):
                self.slot = None
                self.arena.release(index)
                return RemoteTask, (None, False, b"")
            self.index = index
        return RemoteTask, (index, self.reports, pickled)

    def snapshot(self) -> ProgressState:
        with self.board.lock:
            return super().snapshot()

    def began(self) -> float | None:
        with self.board.lock:
            return self.started_at if self.slot is None else self.slot.started_at

    def stood(self) -> float:
        with self.board.lock:
            return super().stood()

    def pulse(self) -> object:
        with self.board.lock:
            return super().pulse()

    def finish(self, status: str) -> None:
        if self._final is not None:
            return
        kept = self.call, self.keeps  # what only the task keeps alive must not end, and run anybody's code, under the lock
        with self.board.lock:
            if self.slot is not None:
                self.started_at = self.slot.started_at
                if not self.reports and not self.was_paused and self.slot.blank:
                    self.slot = None
            super().finish(status)
            index, self.index = self.index, None
            if index is not None:
                self.arena.release(index)
        del kept

    def disown(self) -> None:
        with self.board.lock:
            if self.slot is not None:
                self.slot = Slot(bytearray(self.slot.buffer))


_reducers = ForkingPickler(io.BytesIO()).dispatch_table
"""What multiprocessing pickles its own way: a view of its registry, which takes longer to make than to pickle a call."""


def _dumps(call: Call) -> bytes:
    pickled = io.BytesIO()
    pickler = Pickler(pickled)
    pickler.dispatch_table = _reducers
    try:
        pickler.dump(call)
    except BaseException as error:
        # The feeder thread takes an IndexError for its empty buffer and drops the work item, an EPIPE for the end of its
        # pipe, and does not survive what is no Exception: this future, or all of them, would never be done.
        if isinstance(error, Exception) and not isinstance(error, (IndexError, OSError)):
            raise
        raise PicklingError(f"cannot pickle the call: {type(error).__name__}: {error}") from error
    return pickled.getvalue()


class RemoteTask:
    """What a `ProcessTask` is in the worker: slot `index` (None: cancelled on the way) and the pickled call.

    The call is unpickled here and not by the worker's loop, which would end with the pool broken where that fails.
    """

    __slots__ = ("call", "index", "takes_progress")

    def __init__(self, index: int | None, takes_progress: bool, call: bytes) -> None:
        self.index = index
        self.takes_progress = takes_progress
        self.call = call

    def __call__(self) -> Any:
        global _updater
        if self.index is None:
            raise CancelledError
        assert _arena is not None
        slot = _arena.slot(self.index)
        slot.start(time())
        if not slot.may_begin():
            raise CancelledError
        fn, args, kwargs = loads(self.call)
        self.call = b""
        progress = _updater = Updater(slot.buffer)
        if self.takes_progress:
            kwargs["progress"] = progress
        token = current.set(progress)
        try:
            return fn(*args, **kwargs)
        finally:
            current.reset(token)
            progress._detach()
            _updater = None


_arena: Segment | None = None
"""In a worker: the slots of its pool."""

_updater: Updater | None = None
"""In a worker: that of its task."""


def _disown_progress() -> None:
    """In a forked child of a task, which may outlive it: the slot is its parent's, and then the next task's."""
    if _updater is not None:
        _updater._detach_in_child()


def _start_worker(arena: Segment, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    global _arena
    _arena = arena
    # Ctrl-C reaches the whole process group; the caller decides what it means. SIGTERM must end a worker, but a forked one
    # has inherited the caller's handler, and the pipe through which asyncio hears of signals.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _end_with_caller()
    if initializer is not None:
        initializer(*initargs)


def _end_with_caller() -> None:
    """Have this worker end when its caller is killed: it holds both ends of the call queue, and would wait for ever."""
    parent = parent_process()
    assert parent is not None
    try:
        # Where Linux can kill a process at the end of a pipe, no thread is needed, and the task may fork without a warning.
        from fcntl import F_GETFL, F_SETFL, F_SETOWN, F_SETSIG, fcntl

        fcntl(parent.sentinel, F_SETOWN, os.getpid())
        fcntl(parent.sentinel, F_SETSIG, signal.SIGKILL)
        fcntl(parent.sentinel, F_SETFL, fcntl(parent.sentinel, F_GETFL) | os.O_ASYNC)
    except (ImportError, OSError, AttributeError):
        threading.Thread(target=_exit_after, args=(parent,), daemon=True, name="end-with-caller").start()
    else:
        if not parent.is_alive():
            os._exit(1)


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


_workers: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""The worker processes of all pools of this process."""

_starting = threading.RLock()
"""Held while one starts: another that is forked meanwhile, by another thread, would keep its pipes.

Then neither is the end of one seen as long as the other lives, nor, by both, the end of their caller.
"""


def _disown_workers() -> None:
    """In a forked process: a worker sees that its caller has ended when nobody holds its pipe, so whoever is forked lets go.

    Else a process that outlives the caller, of another pool of the standard library's say, would keep all workers alive.
    """
    global _starting
    _starting = threading.RLock()
    for worker in _workers:
        for fd in worker._popen.finalizer._args or ():
            os.close(fd)
    multiprocessing.process._children.difference_update(_workers)  # type: ignore[attr-defined]  # whom it would join at exit
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_workers)
    os.register_at_fork(after_in_child=_disown_progress)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """A worker that starts meanwhile has SIGINT blocked until `_start_worker` ignores it: no traceback in between."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _NameOfQuiet(str):
    """The name of a worker that the fork server starts: the first thing that it unpickles, and makes it ignore SIGINT.

    The mask is no help there: it would be the server's, which serves others, too. And to import what the tasks need takes
    long: Ctrl-C meanwhile would end the worker, and break the pool, whose other tasks would not get to their `finally`.
    """

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return operator.getitem, ([str(self), _IgnoreSigint()], 0)


class _IgnoreSigint:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return signal.signal, (int(signal.SIGINT), int(signal.SIG_IGN))


def _with_quiet_processes(context: Any) -> Any:
    def process(*args: Any, **kwargs: Any) -> Any:
        worker = context.Process(*args, **kwargs)
        worker.name = _NameOfQuiet(worker.name)
        return worker

    quiet = copy(context)
    quiet.Process = process
    return quiet


class _WorkItems(dict[int, Any]):
    """The pool's work items, which makes futures ours before the manager thread can see them.

    Later, it might be in one of the plain future's methods already, which does not know what `cancel` does.
    """

    def __setitem__(self, number: int, item: Any) -> None:
        ProgressFuture._adopt(item.future, item.fn)
        super().__setitem__(number, item)

    def items(self) -> Iterator[tuple[int, Any]]:  # type: ignore[override]
        """Taken out one by one: the manager thread of a broken pool fails them all.

        Meanwhile the feeder thread takes out one that cannot be pickled, and the standard library's loop would end, with the
        thread, and no other future ever be done.
        """
        for number in list(self):
            with contextlib.suppress(KeyError):
                yield number, self.pop(number)


class _ResultReader(connection.Connection):
    """The pool's end of the pipe of results, which does not wait for the rest of one whose worker was killed.

    The standard library's does, for ever, and with it the whole pool: the other workers keep the pipe open.
    """

    workers: Mapping[int, Any]

    @classmethod
    def adopt(cls, reader: Any, workers: Mapping[int, Any]) -> None:
        """Turn the plain reader of a pool with these workers into one of ours."""
        if os.name == "posix":  # Windows has pipes of another kind
            os.set_blocking(reader.fileno(), False)
            reader.__class__ = cls
            reader.workers = workers

    def _recv(self, size: int, read: Any = None) -> io.BytesIO:
        received = io.BytesIO()
        while size:
            try:
                chunk = os.read(self._handle, size)  # type: ignore[attr-defined]
            except BlockingIOError:  # the rest is still to come; a small result is written, and read, at once
                self._wait_for_more()
                continue
            if not chunk:
                raise EOFError
            received.write(chunk)
            size -= len(chunk)
        return received

    def _wait_for_more(self) -> None:
        ended = [worker.sentinel for worker in list(self.workers.values())]  # another thread may start one meanwhile
        if self not in connection.wait([self, *ended]):
            raise EOFError("a worker process ended before the whole of a result was sent")


# In a worker it is a plain one.
ForkingPickler.register(_ResultReader, connection.reduce_connection)  # type: ignore[attr-defined]


def _wake(lock: Any, wakeup: Any, executor: object) -> None:
    """Have the manager thread see that the executor is gone.

    It may go in the feeder thread, with a task that cannot be pickled, for whose end the manager thread may be waiting with
    the lock held; the standard library's would wait here. Nobody else holds it now, and that thread looks by itself.
    """
    if lock.acquire(blocking=False):
        try:
            wakeup.wakeup()
        finally:
            lock.release()


class _ManagerThread(_ExecutorManagerThread):
    """The pool's manager thread, which removes the shared memory at its end: who has the executor may never leave it."""

    arena: Arena

    @classmethod
    def adopt(cls, thread: Any, executor: "ProcessPoolProgressExecutor") -> None:
        """Turn the plain thread, which was just started, into one of ours."""
        thread.arena = executor._arena
        thread.executor_reference = weakref.ref(executor, partial(_wake, executor._shutdown_lock, thread.thread_wakeup))
        thread.__class__ = cls

    def join_executor_internals(self) -> None:
        super().join_executor_internals()
        self.arena.close()

    def terminate_broken(self, cause: Any) -> None:
        super().terminate_broken(cause)
        self.arena.close()


class ProcessPoolProgressExecutor(ProgressExecutor, ProcessPoolExecutor):
    """A `concurrent.futures.ProcessPoolExecutor`, with all its arguments, whose futures have progress.

    Workers ignore SIGINT. `submit` raises OSError if there is no room for the slots in shared memory.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        with SigintDeferred():  # a semaphore that the resource tracker has not heard of would stay for ever
            try:
                start_tracker()
                ProcessPoolExecutor.__init__(self, max_workers, mp_context, max_tasks_per_child=max_tasks_per_child)
            except OSError as error:
                raise OSError(
                    error.errno, f"no semaphores or pipes for a pool of processes (/dev/shm on Linux): {error.strerror}"
                ) from error
        # Reentrant: from 3.12 on the manager thread of a broken pool, which takes it from here, holds it while it tells the
        # futures, and a done callback may submit or shut down: it would wait for itself, and no other future ever end.
        self._shutdown_lock = threading.RLock()  # type: ignore[assignment]
        context: Any = self._mp_context
        if context.get_start_method() == "forkserver":
            self._mp_context = _with_quiet_processes(context)
        # Twice what workers and call queue hold: finished tasks keep their slots until the manager thread hears of them.
        self._arena = Arena(4 * self._max_workers + 4)  # type: ignore[attr-defined]
        self._manager: weakref.ref[threading.Thread] | None = None
        self._initializer = _start_worker
        self._initargs = (self._arena, initializer, initargs)
        self._pending_work_items = _WorkItems()
        self._call_queue.pending_work_items = self._pending_work_items  # type: ignore[attr-defined]
        _ResultReader.adopt(self._result_queue._reader, self._processes)  # type: ignore[attr-defined]
        # The feeder thread takes this lock when a call cannot be pickled. By default, in 3.12 and 3.13.0, it is one that the
        # manager thread holds while it waits for the feeder thread to end (CPython issue 125451).
        self._call_queue.shutdown_lock = threading.Lock()  # type: ignore[attr-defined]
        self._set_up()
        executors_to_leave.add(self)

    def _enqueue(self, call: Call) -> ProgressFuture[Any]:
        task = ProcessTask(self._board, call, self._arena)
        if self._inside is None:  # else it is left, or at its end cancels what it was given: see `__del__`
            task.keeps = self
        with SigintDeferred():
            if self._manager is None:
                self._arena.open()
            return ProcessPoolExecutor.submit(self, task)  # type: ignore[return-value, arg-type]

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """As in the standard library; `progress`, if `fn` takes it, is that of the whole chunk."""
        if not takes_progress((fn, (None,) * len(iterables), {})):
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize)
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        calls = zip(*iterables)  # noqa: B905  # as long as the shortest, like map
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        results = Executor.map(self, partial(_run_chunk, fn), chunks, timeout=timeout)
        return itertools.chain.from_iterable(results)

    def _spawn_process(self) -> None:
        if self._mp_context.get_start_method() == "forkserver":  # type: ignore[union-attr]
            # It serves others, too, whose processes must not begin with SIGINT blocked.
            forkserver.ensure_running()
        with _starting:
            with _sigint_blocked():
                super()._spawn_process()  # type: ignore[misc]
            _workers.update(list(self._processes.values()))  # the manager thread may forget one meanwhile
        # The standard library wakes the manager thread before it starts the worker: it may wait for the ends of all but this
        # one, which is then not missed when it is killed, and its future would never end.
        if self._manager is not None and self._executor_manager_thread_wakeup is not None:
            self._executor_manager_thread_wakeup.wakeup()

    def _adjust_process_count(self) -> None:
        if self._max_tasks_per_child is None:  # type: ignore[attr-defined]
            super()._adjust_process_count()
        elif len(self._processes) < self._max_workers:  # type: ignore[attr-defined]
            # The standard library takes a worker that has reached its number of tasks for an idle one, starts none in its
            # place, and waits for ever (CPython issue 115634).
            self._spawn_process()

    def _start_executor_manager_thread(self) -> None:
        if self._manager is None:
            super()._start_executor_manager_thread()
            manager: Any = self._executor_manager_thread
            self._manager = weakref.ref(manager)
            _ManagerThread.adopt(manager, self)
            weakref.finalize(manager, self._arena.close)  # should it have ended before that

    def _leave(self) -> None:
        # The feeder thread calls those of a task that cannot be pickled.
        feeder = getattr(self._call_queue, "_thread", None)  # type: ignore[attr-defined]
        if self._manager is not None and threading.current_thread() in (self._manager(), feeder):
            raise RuntimeError("a done callback cannot wait for its own executor to end")
        super()._leave()

    def _shut_down(self, wait: bool) -> None:
        if not wait:
            with self._shutdown_lock:
                self._take_no_more()
            return
        ProcessPoolExecutor.shutdown(self)
        self._arena.close()

    def _take_no_more(self) -> None:
        """What shutdown(wait=False) does, but for forgetting the processes: the manager thread may have to replace some."""
        if self._shutdown_thread:
            return
        self._shutdown_thread = True
        if self._executor_manager_thread_wakeup is not None:
            with contextlib.suppress(OSError):  # the manager thread has ended meanwhile, and closed its pipe
                self._executor_manager_thread_wakeup.wakeup()
            self._executor_manager_thread_wakeup = None  # type: ignore[assignment]  # or shutdown would do so again, at the end

    def _ended(self) -> bool:
        # A first `submit` in another thread comes before this, or is refused. But while the done callbacks of a broken pool
        # hold the lock, who leaves is to go on delivering and to hear Ctrl-C.
        if not self._shutdown_lock.acquire(timeout=0.01):
            return False
        try:
            self._take_no_more()
            manager = None if self._manager is None else self._manager()
        finally:
            self._shutdown_lock.release()
        return manager is None or not manager.is_alive()

    def _pending(self) -> Iterable[Callable[[], object]]:
        # The standard library's cancel_futures would call `cancel()` of running tasks, too, and forget those that say True.
        return [item.future._cancel_pending for item in list(self._pending_work_items.values())]  # type: ignore[attr-defined]


def _run_chunk(fn: Callable[..., T], chunk: list[tuple[Any, ...]], progress: Updater) -> list[T]:
    return [fn(*args, progress=progress) for args in chunk]


threading._register_atexit(leave_all)  # type: ignore[attr-defined]
