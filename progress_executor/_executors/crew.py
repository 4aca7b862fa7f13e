"""What the pools of threads and of processes share: the threads of one pool, and the queue from which they take their tasks.

To submit is one step, an append, so that Ctrl-C before or after it is harmless; a signal handler or a finalizer may come in
the midst of anything here, and submit. The threads hold the crew and not the executor, which may be dropped.
"""

import logging
import operator
import os
import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, NoReturn, TypeVar

from .._futures import ProgressFuture
from .._interrupts import SigintDeferred
from . import base
from .base import End, ProgressExecutor

F = TypeVar("F", bound=ProgressFuture[Any])


class Crew(Generic[F]):
    """Up to `size` threads, each of which takes futures with `take()` until that gives None.

    One more is started when more futures are pending than threads are free.
    """

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self.pending: deque[F] = deque()
        self.threads: set[threading.Thread] = set()  # those that have ended, too
        self.end = End()
        self.closed = False
        self.broken: BrokenExecutor | None = None
        self._name = name
        self._serving: set[threading.Thread] = set()  # those that will look again at what is pending
        self._starting: set[threading.Thread] = set()  # those that have not asked for a future yet
        self._over = 0  # how many threads have ended
        self._growing = False  # a signal handler may submit in the midst of it
        self._idle: list[None] = []  # one for each thread that waits
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.RLock()

    @abstractmethod
    def next_work(self) -> Callable[[], object]:
        """What one more thread is to do."""

    def give_up(self, work: Any) -> None:
        """The thread that was to do that could not be started."""

    def put(self, future: F) -> None:
        """Have the task of `future` run; RuntimeError if the crew is closed, or broken."""
        if self.closed:
            self._refuse()
        self.pending.append(future)
        try:
            self._see_to_it()
        except BaseException as error:  # no thread, or no process, could be started: who submits is told so
            self._take_out(future)
            if not self._serving:
                self._fail_pending(error)  # what a signal handler has submitted meanwhile
            raise
        if self.closed and not self._serving and self._take_out(future):  # since just now: nobody looks any more
            self._refuse()

    def _take_out(self, future: F) -> bool:
        with suppress(ValueError):
            self.pending.remove(future)
            self._end_if_over()
            return True
        return False

    def _refuse(self) -> NoReturn:
        after = "interpreter shutdown" if base.program_ends else "shutdown"
        raise self.error() or RuntimeError(f"cannot schedule new futures after {after}")

    def error(self) -> BrokenExecutor | None:
        """What to raise because the crew is broken, if it is."""
        return None if self.broken is None else type(self.broken)(*self.broken.args)

    def put_back(self, future: F) -> None:
        """Have it run before all that is pending."""
        self.pending.appendleft(future)
        self._try(self._see_to_it)

    def is_needed(self) -> bool:
        """Whether there may be something to do, but for what has begun."""
        return not self.closed or not all(future.done() for future in tuple(self.pending))

    def _see_to_it(self) -> None:
        if self._idle:
            self._wake.put(None)
        if len(self._serving) < self.size and self._is_too_small():
            self.grow()

    def _is_too_small(self) -> bool:
        """Whether more is pending than threads are free."""
        return len(self.pending) > len(self._idle) + len(self._starting)

    def _try(self, grow: Callable[[], object]) -> None:
        """Grow where nobody can be told that it fails: then fewer threads do the work, or it fails if there is none."""
        try:
            grow()
        except Exception as error:
            if not self._serving:
                self._fail_pending(error)

    def wake_one(self) -> None:
        """Have an idle thread, if there is one, look around."""
        if self._idle:
            self._wake.put(None)

    def grow(self) -> None:
        """Start one more thread."""
        with SigintDeferred(), self._lock:  # nobody would wait for a thread that was started and not noted
            if self._growing or len(self._serving) >= self.size or self.end.reached:
                return
            self._growing = True
            sets = self.threads, self._serving, self._starting
            try:
                name, work = f"{self._name}_{len(self.threads)}", self.next_work()
                thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=False)
                for threads in sets:
                    threads.add(thread)
                try:
                    thread.start()
                except BaseException:
                    for threads in sets:
                        threads.discard(thread)
                    self.give_up(work)
                    raise
            finally:
                self._growing = False

    def take(self) -> F | None:
        """The next future; waits for one, and gives None when the crew is closed and none is left."""
        if self._starting:
            self._starting.discard(threading.current_thread())
        while self.pending or self._wait():
            try:
                future = self.pending.popleft()
            except IndexError:  # another thread was faster
                continue
            if len(self._serving) < self.size and self._is_too_small():
                self._try(self.grow)  # who submitted may have taken this thread for a free one
            return future
        return None

    def _wait(self) -> bool:
        """Wait until there may be something to take; False if there will not."""
        if self.closed:
            thread = threading.current_thread()
            self._serving.discard(thread)
            if not self.bring() and not self.pending:
                return False
            self._serving.add(thread)
            return True
        self._idle.append(None)
        try:
            if not self.pending and not self.closed and not self.bring():
                self._wake.get()
        finally:
            self._idle.pop()
        return True

    def all_pending(self) -> list[F]:
        """Those that no thread runs."""
        return list(self.pending)

    def bring(self) -> bool:
        """Have what waits elsewhere, though a thread is idle, be pending; whether there was something."""
        return False

    def close(self) -> None:
        """Take no more; the threads end when nothing is left. Waits for nothing: a finalizer may call this."""
        self.closed = True
        for _ in range(self.size):
            self._wake.put(None)
        if self.pending and not self._serving:  # Ctrl-C came between the steps of `put`
            self._try(self.grow)
        self._end_if_over()

    def break_down(self, error: BrokenExecutor) -> None:
        """Fail all that is pending, and take no more."""
        self.broken = error  # first: who is refused is told why
        self.close()
        self._fail_pending(error)

    def _fail_pending(self, error: BaseException) -> None:
        with suppress(IndexError):
            while True:
                future = self.pending.popleft()
                if future.set_running_or_notify_cancel():
                    future._end(error=self.error() or error)

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            logging.getLogger("concurrent.futures").critical("Exception in worker", exc_info=True)
            self.break_down(BrokenExecutor(f"a thread of the pool has failed: {error!r}"))
        finally:
            thread = threading.current_thread()
            self._serving.discard(thread)
            self._starting.discard(thread)
            if self.broken is not None:  # what `put` left there meanwhile
                self._fail_pending(self.broken)
            elif self.pending:  # what was put back meanwhile
                self._try(self._see_to_it)
            with self._lock:
                self._over += 1
            self._end_if_over()

    def _end_if_over(self) -> None:
        if self.closed and self._over == len(self.threads):  # else the lock may be held for long
            with self._lock:  # in which a thread is started
                if self._over == len(self.threads) and not self.pending:
                    self.clean_up()
                    self.end.reach()

    def clean_up(self) -> None:
        """Called when all threads have ended, before anybody hears of it."""


class PoolExecutor(ProgressExecutor):
    """An executor with a crew."""

    def _set_up_pool(self, crew: Crew[Any]) -> None:
        self._crew = crew
        self._set_up(crew.end)
        self._close_crew = weakref.finalize(self, crew.close)
        self._close_crew.atexit = False
        base.executors_to_leave.add(self)

    def _put(self, future: F) -> F:
        if self._with_block_thread is None:  # else it is left, or at its end cancels what it was given: see `__del__`
            future._task.keepalive = self
        self._crew.put(future)
        return future

    def _check_leaving(self) -> None:
        if threading.current_thread() in self._crew.threads:
            raise RuntimeError("what runs in a thread of an executor cannot wait for that executor's end")

    def _clean_up(self) -> None:
        for thread in tuple(self._crew.threads):
            thread.join()  # it has nothing left to do

    def _close(self) -> None:
        self._crew.close()

    @property
    def _broken(self) -> BrokenExecutor | None:
        """Why no task is taken any more, if that is so: some who need a new pool then look here."""
        return self._crew.error()

    def _cancel_all(self) -> list[BaseException]:
        self._close()  # it is being left
        return super()._cancel_all()

    def _pending(self) -> "Iterable[Callable[[], object]]":
        return [future._cancel_pending for future in self._crew.all_pending()]


def processors() -> int:
    """How many this process may use, as the standard library counts them."""
    count: int | None = getattr(os, "process_cpu_count", os.cpu_count)()  # the former from 3.13 on
    return count or 1


def checked_max_workers(max_workers: int | None, default: int) -> int:
    """TypeError if it is no integer, ValueError if it is not positive."""
    if max_workers is None:
        return default
    if operator.index(max_workers) <= 0:
        raise ValueError("max_workers must be greater than 0")
    return max_workers


def check_initializer(initializer: object) -> None:
    """TypeError if it is not callable."""
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
