"""`ProgressExecutor`: what the executors have in common. submit, leaving, and stopping everything on Ctrl-C."""

import asyncio
import os
import sys
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from time import sleep
from types import TracebackType
from typing import Any, Self, TypeVar

from ..delivery import Board, logger
from ..futures import ProgressFuture
from ..interrupts import SigintDeferred
from ..tasks import Call

T = TypeVar("T")

executors_to_leave: "weakref.WeakSet[ProgressExecutor]" = weakref.WeakSet()
"""The pools, which at exit wait for their tasks."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=executors_to_leave.clear)  # they are the parent's


class ProgressExecutor(Executor):
    """A `concurrent.futures.Executor` whose futures carry progress to the caller and cancellation to the task.

    A function that has a parameter called `progress` is given an `Updater` in it, unless the caller passes one.
    As a context manager it waits for its tasks, delivering their progress; when it is left by KeyboardInterrupt or
    `asyncio.CancelledError`, it cancels them first. `async with` does so without blocking the event loop.
    """

    def _set_up(self) -> None:
        self._board = Board()
        # Two threads may leave: a daemon thread, and at exit the main one. A pool's pipes are to be closed once.
        self._leaving = threading.RLock()
        self._inside: int | None = None  # the thread that is in the executor's `with` block
        self._owner = os.getpid()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]:
        """Have `fn(*args, **kwargs)` run.

        TypeError if `fn` is not callable, RuntimeError after `shutdown`.
        """
        if not callable(fn):
            raise TypeError(f"submit() takes a callable, not {type(fn).__name__}")
        return self._enqueue((fn, args, kwargs))

    @abstractmethod
    def _enqueue(self, call: Call) -> ProgressFuture[Any]: ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; as in the standard library, and with `wait`, deliver progress until all have ended.

        Ctrl-C meanwhile cancels the tasks, and is raised when they have stopped; a second one is raised at once, with all
        bars closed. In a forked process, which has nothing of the executor but its shape, it does nothing.
        """
        if self._owner != os.getpid():
            return
        if cancel_futures:
            self._cancel_pending()
        if not wait:
            with self._leaving:
                self._shut_down(wait=False)
            return
        try:
            try:
                self._leave()
            except (KeyboardInterrupt, SystemExit) as error:  # the latter of a callback: the others are still to be told
                if isinstance(error, KeyboardInterrupt):
                    self._cancel_all()
                self._leave()
                raise
        except KeyboardInterrupt:
            self._give_up()
            raise

    @abstractmethod
    def _shut_down(self, wait: bool) -> None:
        """Take no more tasks; with `wait`, return when all have ended."""

    @abstractmethod
    def _ended(self) -> bool:
        """Take no more tasks, and say whether all have ended."""

    @abstractmethod
    def _cancel_pending(self) -> None:
        """Cancel what is not running."""

    def _leave(self) -> None:
        for pause in _pauses():
            if self._try_to_end():
                break
            self._board.pump()
            sleep(pause)
        self._board.pump(everyone=True)

    def _try_to_end(self) -> bool:
        # The standard library's own waiting delivers nothing, and up to 3.12 a thread whose join() was interrupted by
        # Ctrl-C passes for ended: join what has ended only.
        with SigintDeferred(), self._leaving:
            ended = self._ended()
            if ended:
                self._shut_down(wait=True)
            return ended

    def _give_up(self) -> None:
        """Ctrl-C is raised before all have ended: they are asked to, and the terminal is left to the program."""
        with SigintDeferred():
            self._cancel_all()
            self._board.close_bars()

    def _cancel_all(self) -> None:
        with SigintDeferred():
            with self._board.lock:
                self._board.cancelling = True
                running = self._board.running.copy()
            for task in running:
                task.request_cancel()
            self._cancel_pending()

    def __enter__(self) -> Self:
        self._inside = threading.get_ident()
        return self

    def __del__(self) -> None:
        # Ctrl-C may hit `__exit__` before its first line: the block was left, and nobody has waited.
        if getattr(self, "_inside", None) is not None and self._owner == os.getpid():
            self._give_up()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:  # nothing before it: a second Ctrl-C is often close behind the first
            if _is_interrupt(exc_type) and self._owner == os.getpid():
                self._cancel_all()
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self._give_up()
            raise
        finally:
            self._inside = None

    async def __aenter__(self) -> Self:
        self._inside = threading.get_ident()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._owner != os.getpid():
            return
        try:
            if _is_interrupt(exc_type):
                self._cancel_all()
            cancelled = await self._leave_in_loop()
            self._board.pump(everyone=True)
        except KeyboardInterrupt:
            self._give_up()
            raise
        finally:
            self._inside = None
        if cancelled is not None:
            raise cancelled

    async def _leave_in_loop(self) -> asyncio.CancelledError | None:
        """Like `_leave`, but for an event loop; cancels all tasks if it is cancelled itself, and returns that."""
        cancelled = None
        for pause in _pauses():
            if self._try_to_end():
                break
            self._board.pump()
            try:
                await asyncio.sleep(pause)
            except asyncio.CancelledError as error:
                cancelled = error
                self._cancel_all()
        return cancelled


def _pauses() -> Iterator[float]:
    """For how long to sleep between two looks at what has to end: a thousandth of a second, soon a fiftieth."""
    pause = 0.001
    while True:
        yield pause
        pause = min(pause * 1.5, 0.02)


def _is_interrupt(exc_type: type[BaseException] | None) -> bool:
    return exc_type is not None and issubclass(exc_type, (KeyboardInterrupt, asyncio.CancelledError))


def leave_all() -> None:
    """At exit, wait for all executors as if each were left there, by Ctrl-C if that is why the program ends.

    Registered by the modules of the pools, so that it runs before the standard library's own waiting, which would deliver no
    progress and, after Ctrl-C, run all that was submitted.
    """
    # In an interactive session the last exception may be an old one.
    interrupted = not hasattr(sys, "ps1") and issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt)
    for executor in tuple(executors_to_leave):
        try:
            if interrupted or executor._inside == threading.get_ident():  # see `__del__`
                executor._cancel_all()
            executor.shutdown()
        except KeyboardInterrupt:
            interrupted = True
        except SystemExit:  # of a callback
            pass
        except Exception:
            logger.exception("%r could not be left at exit", executor)
