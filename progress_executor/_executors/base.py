"""`ProgressExecutor`: what the executors have in common. submit, leaving, and stopping everything on Ctrl-C."""

import asyncio
import concurrent.futures.thread  # noqa: F401  # its hook at exit is registered before ours, and so runs after it
import os
import sys
import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from itertools import islice
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, Self, TypeVar, overload

from .._deadlines import kill_later, look_for_the_thread
from .._following import DoneWaiter
from .._futures import ProgressFuture
from .._interrupts import SafeCondition, SigintDeferred, call_each
from .._monitor import INTERVAL, Monitor, logger
from .._speedups import Updater
from .._tasks import Call, takes_progress
from . import signatures

P = ParamSpec("P")
T = TypeVar("T")

executors_to_leave: "weakref.WeakSet[ProgressExecutor]" = weakref.WeakSet()
"""The pools, which at exit wait for their tasks."""

_executors: "weakref.WeakSet[ProgressExecutor]" = weakref.WeakSet()
"""All of this process."""


def _detach_after_fork() -> None:
    """In a forked child: neither threads nor workers would ever run a task, and another thread may have held a lock."""
    for executor in _executors:
        executor._enqueue = _refuse  # type: ignore[method-assign]  # here and not in `submit`, which need not ask each time
        executor._monitor.lock = threading.RLock()  # for whoever asks for the state of a task
        for task in executor._monitor.running:
            task.detach_after_fork()
    _executors.clear()
    executors_to_leave.clear()


def _refuse(call: Call) -> NoReturn:
    raise RuntimeError("a forked process cannot submit to an executor of its parent: make one here")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_detach_after_fork)


class End:
    """An event on which threads and event loops wait until an executor has nothing to do any more, and takes nothing."""

    def __init__(self) -> None:
        self.reached = False
        self._condition = SafeCondition()
        self._done_waiters: list[DoneWaiter] = []

    def reach(self) -> None:
        with self._condition:
            self.reached = True
            self._condition.notify_all()
        for done_waiter in self._done_waiters.copy():
            done_waiter.wake()

    def wait(self, timeout: float) -> bool:
        with self._condition:
            return self.reached or self._condition.wait(timeout) or self.reached

    async def wait_in_loop(self, timeout: float) -> bool:
        done_waiter = DoneWaiter()
        self._done_waiters.append(done_waiter)
        try:
            if not self.reached:
                await asyncio.wait([done_waiter.woken], timeout=timeout)
        finally:
            self._done_waiters.remove(done_waiter)
        return self.reached


class ProgressExecutor(Executor):
    """A `concurrent.futures.Executor` whose futures carry progress to the caller and cancellation to the task.

    A function that has a parameter called `progress` is given an `Updater` in it, unless the caller passes one.
    As a context manager it waits for its tasks, delivering their progress; when it is left by KeyboardInterrupt or
    `asyncio.CancelledError`, it cancels them first. `async with` does so without blocking the event loop.
    """

    _kill_after: float | None = None
    """Seconds after which a task is killed that Ctrl-C has asked to stop."""

    def _set_up(self, end: End | None = None) -> None:
        self._monitor = Monitor()
        self._end = end or End()
        self._with_block_thread: int | None = None  # the thread that is in the executor's `with` block
        self._owner = os.getpid()
        _executors.add(self)

    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> ProgressFuture[T]: ...
    @overload
    def submit(self, fn: signatures.ProgressFirst[T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]: ...
    @overload
    def submit(self, fn: signatures.ProgressSecond[T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]: ...
    @overload
    def submit(self, fn: signatures.ProgressByName[T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]: ...
    @overload
    def submit(self, fn: signatures.ProgressByName0[T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]: ...
    @overload
    def submit(self, fn: signatures.ProgressByName1[T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]: ...
    @overload
    def submit(self, fn: signatures.ProgressByName2[T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]: ...
    @overload
    def submit(self, fn: signatures.ProgressByName3[T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]: ...
    @overload
    def submit(self, fn: signatures.ProgressByName4[T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]: ...
    @overload
    def submit(self, fn: signatures.ProgressByName5[T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ProgressFuture[Any]:
        """Have `fn(*args, **kwargs)` run.

        TypeError if `fn` is not callable, RuntimeError after `shutdown` and in a process forked since.
        """
        if not callable(fn):
            raise TypeError(f"submit() takes a callable, not {type(fn).__name__}")
        return self._enqueue((fn, args, kwargs))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As in the standard library of 3.14: the values of `fn(*items)`, in order.

        On processes, `chunksize` items are one task, and `progress`, if `fn` takes it, is that of the whole chunk. With
        `buffersize`, only so many tasks are submitted before their values are asked for.
        """
        if chunksize < 1 and self._takes_chunks:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        calls: Iterator[Any] = zip(*iterables)  # noqa: B905  # as long as the shortest, like map
        if not self._takes_chunks:
            return self._map(fn, calls, timeout, buffersize)
        with_progress = takes_progress((fn, (None,) * len(iterables), {}))
        run_chunk = partial(run_chunk_with_progress if with_progress else run_chunk_without, fn)
        chunks = ((chunk,) for chunk in iter(lambda: list(islice(calls, chunksize)), []))
        return _flattened(self._map(run_chunk, chunks, timeout, buffersize))

    _takes_chunks = False

    def _map(
        self, fn: Callable[..., Any], calls: Iterator[Any], timeout: float | None, buffersize: int | None
    ) -> Iterator[Any]:
        end = None if timeout is None else monotonic() + timeout
        futures = deque(self.submit(fn, *args) for args in islice(calls, buffersize))
        submit = None if buffersize is None else self.submit  # who has no use for the executor does not keep it

        def values() -> Iterator[Any]:
            try:
                while futures:
                    value = [_value_or_cancel(futures, end)]
                    if submit is not None:
                        futures.extend(submit(fn, *args) for args in islice(calls, 1))
                    yield value.pop()  # nothing here keeps it alive
            finally:
                for future in futures:
                    future.cancel()

        return values()

    def poll(self) -> None:
        """Deliver what is due to this thread, and return at once: for who does not wait, as a GUI's timer.

        Callbacks, sinks and bars that this thread has added, to any future or group of this executor, are told what they
        would be told if it waited. A SyncProgressExecutor runs nothing.
        """
        self._monitor.poll()

    @abstractmethod
    def _enqueue(self, call: Call) -> ProgressFuture[Any]: ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; as in the standard library, and with `wait`, deliver progress until all have ended.

        Ctrl-C meanwhile cancels the tasks, and is raised when they have stopped; a second one is raised at once, with all
        bars closed. In a forked process, which has nothing of the executor but its shape, it does nothing.
        """
        if self._owner != os.getpid():
            return
        if not wait:
            self._close()
            interrupts = self._cancel_pending() if cancel_futures else []
        else:
            interrupts = []
            interrupted = self._monitor.cancelling  # Ctrl-C has left the `with` block: the next one is the second
            try:
                while True:
                    try:
                        if cancel_futures:
                            cancel_futures = False
                            interrupts = self._cancel_pending()
                        self._leave()
                        break
                    except SystemExit as error:  # of a callback, maybe of each call: the others are still to be told
                        interrupts = [error]
                    except KeyboardInterrupt as error:
                        if interrupted:
                            raise
                        interrupted = True
                        interrupts = self._cancel_all() or [error]
            except KeyboardInterrupt:
                self._cancel_and_close_bars()
                raise
        if interrupts:
            raise interrupts.pop()

    @abstractmethod
    def _close(self) -> None:
        """Take no more tasks; waits for nothing, and may be called again."""

    @abstractmethod
    def _pending(self) -> Iterable[Callable[[], object]]:
        """What cancels each of the tasks that are not running."""

    def _check_leaving(self) -> None:
        """RuntimeError if this thread cannot wait for the end."""

    def _leave(self) -> None:
        self._check_leaving()
        self._close()
        while not self._end.wait(min(self._pause(), look_for_the_thread())):
            self._monitor.poll()
        self._clean_up()
        self._monitor.poll(everyone=True)

    def _pause(self) -> float:
        """For how long to wait at most: until something is to be delivered."""
        return INTERVAL if self._monitor.watched else 1.0

    def _clean_up(self) -> None:
        """Called when the end is reached."""

    def _cancel_and_close_bars(self) -> None:
        """Ctrl-C is raised before all have ended: they are asked to, and the terminal is left to the program.

        Not by a forked child, in which it may come before the executor is asked whose it is.
        """
        with SigintDeferred():
            if self._owner == os.getpid():
                self._cancel_all()
                self._monitor.close_bars()

    def _cancel_pending(self) -> list[BaseException]:
        """Cancel what is not running; returns the last interrupt of a done callback, to be raised when all have ended.

        Ctrl-C itself is raised here: a second one does not wait.
        """
        with SigintDeferred():
            return call_each(self._pending())

    def _cancel_all(self) -> list[BaseException]:
        """Ask all tasks to stop; otherwise like `_cancel_pending`."""
        with SigintDeferred():
            with self._monitor.lock:
                self._monitor.cancelling = True
                running = self._monitor.running.copy()
            pending = self._pending()  # first: they do not begin where others stop
            for task in running:
                task.request_cancel()
                kill_later(task, self._kill_after)
            return call_each(pending)

    def __enter__(self) -> Self:
        self._with_block_thread = threading.get_ident()
        return self

    def __del__(self) -> None:
        # Ctrl-C may hit `__exit__` or `__aexit__` before its first line: the block was left, and nobody has waited.
        if getattr(self, "_with_block_thread", None) is not None:
            self._cancel_and_close_bars()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:  # nothing before it: a second Ctrl-C is often close behind the first
            interrupts = self._cancel_all() if _is_interrupt(exc_type) and self._owner == os.getpid() else []
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self._cancel_and_close_bars()
            raise
        finally:
            self._with_block_thread = None
        if interrupts:
            raise interrupts.pop()

    async def __aenter__(self) -> Self:
        self._with_block_thread = threading.get_ident()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:  # nothing before it, as in `__exit__`
            if self._owner != os.getpid():
                return
            interrupts = self._cancel_all() if _is_interrupt(exc_type) else []
            interrupts = await self._leave_in_loop() or interrupts
            self._monitor.poll(everyone=True)
        except KeyboardInterrupt:
            self._cancel_and_close_bars()
            raise
        finally:
            self._with_block_thread = None
        if interrupts:
            raise interrupts.pop()

    async def _leave_in_loop(self) -> list[BaseException]:
        """Like `_leave`, but for an event loop; if cancelled itself, it cancels all tasks; returns what to raise then."""
        interrupts: list[BaseException] = []
        self._check_leaving()
        self._close()
        while not self._end.reached:
            self._monitor.poll()
            try:
                await self._end.wait_in_loop(self._pause())
            except asyncio.CancelledError as error:
                interrupts = self._cancel_all() or interrupts or [error]
        self._clean_up()
        return interrupts


def _value_or_cancel(futures: "deque[ProgressFuture[T]]", end: float | None) -> T:
    """The value of the first of them, which is taken out; it is cancelled if that cannot be given."""
    try:
        future = futures.popleft()
        try:
            return future.result(None if end is None else end - monotonic())
        finally:
            future.cancel()
    finally:
        del future  # the traceback of what it has raised holds this frame


def _flattened(chunks: Iterator[list[T]]) -> Iterator[T]:
    """The items of the lists; nothing here keeps one alive that was given out."""
    for values in chunks:
        values.reverse()
        while values:
            yield values.pop()


def run_chunk_without(fn: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    return [fn(*args) for args in chunk]


def run_chunk_with_progress(fn: Callable[..., T], chunk: list[tuple[Any, ...]], progress: Updater) -> list[T]:
    return [fn(*args, progress=progress) for args in chunk]


def _is_interrupt(exc_type: type[BaseException] | None) -> bool:
    return exc_type is not None and issubclass(exc_type, (KeyboardInterrupt, asyncio.CancelledError))


def leave_all() -> None:
    """At exit, wait for all executors as if each were left there, by Ctrl-C if that is why the program ends.

    Before threads are joined, and before the standard library waits for its pools.
    """
    global program_ends
    program_ends = True
    # In an interactive session the last exception may be an old one.
    interrupted = not hasattr(sys, "ps1") and issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt)
    for executor in tuple(executors_to_leave):
        try:
            if interrupted or executor._with_block_thread == threading.get_ident():  # see `__del__`
                executor._cancel_all()
            executor.shutdown()
        except KeyboardInterrupt:
            interrupted = True
        except SystemExit:  # of a callback
            pass
        except Exception:
            logger.exception("%r could not be left at exit", executor)


program_ends = False
"""Whether the executors are being left at exit, or were."""

threading._register_atexit(leave_all)  # type: ignore[attr-defined]
