"""`ProgressExecutor`: what the executors have in common. submit, leaving, and stopping everything on Ctrl-C."""

import asyncio
import os
import sys
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from time import sleep
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from ..delivery import Board, logger
from ..futures import ProgressFuture
from ..interrupts import SigintDeferred, call_each
from ..tasks import Call

T = TypeVar("T")

executors_to_leave: "weakref.WeakSet[ProgressExecutor]" = weakref.WeakSet()
"""The pools, which at exit wait for their tasks."""

_executors: "weakref.WeakSet[ProgressExecutor]" = weakref.WeakSet()
"""All of this process."""


def _disown_executors() -> None:
    """In a forked child: neither threads nor workers would ever run a task, and another thread may have held a lock."""
    for executor in _executors:
        executor._enqueue = _refuse  # type: ignore[method-assign]  # here and not in `submit`, which need not ask each time
        executor._board.lock = threading.RLock()  # for whoever asks for the state of a task
        for task in executor._board.running:
            task.disown()
    _executors.clear()
    executors_to_leave.clear()


def _refuse(call: Call) -> NoReturn:
    raise RuntimeError("a forked process cannot submit to an executor of its parent: make one here")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_executors)


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
        _executors.add(self)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> ProgressFuture[T]:
        """Have `fn(*args, **kwargs)` run.

        TypeError if `fn` is not callable, RuntimeError after `shutdown` and in a process forked since.
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
        if not wait:
            with self._leaving:
                self._shut_down(wait=False)
            interrupts = self._cancel_pending() if cancel_futures else []
        else:
            interrupts = []
            interrupted = False
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
                self._give_up()
                raise
        if interrupts:
            raise interrupts.pop()

    @abstractmethod
    def _shut_down(self, wait: bool) -> None:
        """Take no more tasks; with `wait`, return when all have ended."""

    @abstractmethod
    def _ended(self) -> bool:
        """Take no more tasks, and say whether all have ended."""

    @abstractmethod
    def _pending(self) -> Iterable[Callable[[], object]]:
        """What cancels each of the tasks that are not running."""

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
        """Ctrl-C is raised before all have ended: they are asked to, and the terminal is left to the program.

        Not by a forked child, in which it may come before the executor is asked whose it is.
        """
        with SigintDeferred():
            if self._owner == os.getpid():
                self._cancel_all()
                self._board.close_bars()

    def _cancel_pending(self) -> list[BaseException]:
        """Cancel what is not running; returns the last interrupt of a done callback, to be raised when all have ended.

        Ctrl-C itself is raised here: a second one does not wait.
        """
        with SigintDeferred():
            return call_each(self._pending())

    def _cancel_all(self) -> list[BaseException]:
        """Ask all tasks to stop; otherwise like `_cancel_pending`."""
        with SigintDeferred():
            with self._board.lock:
                self._board.cancelling = True
                running = self._board.running.copy()
            for task in running:
                task.request_cancel()
            return self._cancel_pending()

    def __enter__(self) -> Self:
        self._inside = threading.get_ident()
        return self

    def __del__(self) -> None:
        # Ctrl-C may hit `__exit__` or `__aexit__` before its first line: the block was left, and nobody has waited.
        if getattr(self, "_inside", None) is not None:
            self._give_up()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:  # nothing before it: a second Ctrl-C is often close behind the first
            interrupts = self._cancel_all() if _is_interrupt(exc_type) and self._owner == os.getpid() else []
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self._give_up()
            raise
        finally:
            self._inside = None
        if interrupts:
            raise interrupts.pop()

    async def __aenter__(self) -> Self:
        self._inside = threading.get_ident()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:  # nothing before it, as in `__exit__`
            if self._owner != os.getpid():
                return
            interrupts = self._cancel_all() if _is_interrupt(exc_type) else []
            interrupts = await self._leave_in_loop() or interrupts
            self._board.pump(everyone=True)
        except KeyboardInterrupt:
            self._give_up()
            raise
        finally:
            self._inside = None
        if interrupts:
            raise interrupts.pop()

    async def _leave_in_loop(self) -> list[BaseException]:
        """Like `_leave`, but for an event loop; if cancelled itself, it cancels all tasks; returns what to raise then."""
        interrupts: list[BaseException] = []
        for pause in _pauses():
            if self._try_to_end():
                break
            self._board.pump()
            try:
                await asyncio.sleep(pause)
            except asyncio.CancelledError as error:
                interrupts = self._cancel_all() or interrupts or [error]
        return interrupts


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
