"""`ProgressExecutor`: what the executors have in common. submit, leaving, and stopping everything on Ctrl-C."""

import asyncio
import sys
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Self, TypeVar

from ..delivery import INTERVAL, Board
from ..futures import ProgressFuture
from ..tasks import Call

T = TypeVar("T")

_executors: "weakref.WeakSet[ProgressExecutor]" = weakref.WeakSet()


class ProgressExecutor(Executor):
    """A `concurrent.futures.Executor` whose futures carry progress to the caller and cancellation to the task.

    A function that has a parameter called `progress` is given an `Updater` in it, unless the caller passes one.
    As a context manager it waits for its tasks, delivering their progress; when it is left by KeyboardInterrupt or
    `asyncio.CancelledError`, it cancels them first. `async with` does so without blocking the event loop.
    """

    def _set_up(self) -> None:
        self._board = Board()
        _executors.add(self)

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

        Ctrl-C meanwhile cancels the tasks, and is raised when they have stopped; a second one is raised at once.
        """
        if cancel_futures:
            self._cancel_pending()
        if not wait:
            self._shut_down(wait=False)
            return
        try:
            self._leave()
        except KeyboardInterrupt:
            self._cancel_all()
            self._leave()
            raise

    @abstractmethod
    def _shut_down(self, wait: bool) -> None:
        """Take no more tasks; with `wait`, return when all have ended."""

    @abstractmethod
    def _cancel_pending(self) -> None:
        """Cancel what is not running."""

    def _leave(self) -> None:
        # The standard library's own waiting delivers nothing: let another thread do that.
        waiter = threading.Thread(target=self._shut_down, args=(True,), name="leave-executor")
        try:
            waiter.start()
        except RuntimeError:  # no new threads: the interpreter is ending
            self._shut_down(wait=True)
        else:
            while waiter.is_alive():
                self._board.pump()
                waiter.join(INTERVAL)
        self._board.pump(everyone=True)

    def _cancel_all(self) -> None:
        with self._board.lock:
            self._board.cancelling = True
            running = tuple(self._board.running)
        for task in running:
            task.request_cancel()
        self._cancel_pending()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if _is_interrupt(exc_type):
            self._cancel_all()
        self.shutdown(wait=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if _is_interrupt(exc_type):
            self._cancel_all()
        leaving = asyncio.ensure_future(self._leave_in_loop())
        cancelled = None
        while not leaving.done():
            self._board.pump()
            try:
                await asyncio.wait([leaving], timeout=INTERVAL)
            except asyncio.CancelledError as error:
                cancelled = error
                self._cancel_all()
        self._board.pump(everyone=True)
        if cancelled is not None:
            raise cancelled

    async def _leave_in_loop(self) -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def wait_for_all() -> None:
            self._shut_down(wait=True)
            loop.call_soon_threadsafe(ended.set_result, None)

        threading.Thread(target=wait_for_all, name="leave-executor").start()
        await ended


def _is_interrupt(exc_type: type[BaseException] | None) -> bool:
    return exc_type is not None and issubclass(exc_type, (KeyboardInterrupt, asyncio.CancelledError))


def cancel_all_if_interrupted() -> None:
    """At exit the standard library's pools run all that was submitted; after Ctrl-C nobody wants that."""
    if issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt):
        for executor in _executors:
            executor._cancel_all()
