"""`SyncProgressExecutor`: runs a task in the thread that waits for it; the task itself pushes its progress."""

import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from .._futures import ProgressFuture
from .._interrupts import SigintDeferred
from .._monitor import LoopPoller, Monitor
from .._tasks import Call, Task
from .base import ProgressExecutor

_numbers = itertools.count()


class SyncTask(Task):
    """Does nothing until somebody waits for it; then it runs in that thread."""

    runs_when_waited_for = True

    def __init__(self, monitor: Monitor, call: Call, futures: "dict[SyncTask, ProgressFuture[Any]]") -> None:
        super().__init__(monitor, call)
        self.number = next(_numbers)
        self.futures = futures  # of the executor: all that are not done
        self.thread: int | None = None  # which runs it
        self.cancels_heard: int | None = None  # of asyncio's main task, before the turn of the loop in which it begins

    def run_here(self) -> None:
        with SigintDeferred() as deferred:  # a future that was taken must end: else who leaves waits for it for ever
            if not self._take():
                return
            future = self.futures.get(self)
            if future is None or not future.set_running_or_notify_cancel():
                return
            returned: list[Any] = []
            interrupts: list[BaseException] = []  # a list, so that it can be popped before it is raised: no reference cycle
            try:
                with deferred.lifted(), _cancelled_by_sigint(self):
                    self.run(returned)
            except BaseException as error:
                if not returned and not isinstance(error, KeyboardInterrupt):
                    future.set_exception(error)
                    future = None  # the traceback holds this frame
                    return
                interrupts.append(error)
            if returned:  # a value is kept, though Ctrl-C came before it could be told
                future.set_result(returned.pop())
            else:
                self.cancel_requested = True
                future.set_exception(asyncio.CancelledError())
            if interrupts:
                raise interrupts.pop()

    def _take(self) -> bool:
        """Whether it is the calling thread that has to run it; RuntimeError if that does so already."""
        thread = threading.get_ident()
        with self.monitor.lock:
            taken, self.thread = self.thread, self.thread or thread
        if taken == thread and not self.finished:
            raise RuntimeError("a task of a SyncProgressExecutor cannot wait for itself, nor can what it calls")
        return taken is None

    def push(self, now: bool) -> None:
        # Threads of the task may count, but callbacks are called in the thread that waits.
        if self.monitor.watched and self.thread == threading.get_ident():
            for subscription in self.subscriptions:
                subscription.deliver(now)
            self.monitor.poll()

    @property
    def to_be_run(self) -> bool:  # type: ignore[override]
        return self.thread is None and not self.finished

    async def run_in_loop(self, loop_poller: LoopPoller) -> None:
        async with loop_poller.turn:
            # Ctrl-C may have cancelled asyncio's main task just now, which cannot run while this does. It does in this
            # turn of the loop, and cancels this one if it waits for it; what comes during the turn is counted.
            self.cancels_heard = _cancels_of_main_task(signal.getsignal(signal.SIGINT))
            await asyncio.sleep(0)
            self.run_here()
            # The loop stood still meanwhile. Before anybody hears of the end it does what fell due before it, such as
            # a cancellation after two seconds: a sleep, however short, comes after all of that.
            await asyncio.sleep(1e-9)

    async def wait_in_loop(self, future: "Future[Any]", loop_poller: LoopPoller) -> None:
        try:
            await self.run_in_loop(loop_poller)
            if not future.done():  # another thread runs it
                await super().wait_in_loop(future, loop_poller)
        finally:
            del future  # see `ProgressFuture.result`

    def check_pausing(self) -> None:
        if not self.finished:
            raise RuntimeError("a task of a SyncProgressExecutor cannot be paused: the thread that could resume it runs it")

    def pause(self, paused: bool) -> bool:
        if paused:
            self.check_pausing()
        return not self.finished

    def finish(self, status: str) -> None:
        super().finish(status)
        self.futures.pop(self, None)


class SyncFuture(ProgressFuture[Any]):
    """A future whose task runs when it is waited for, in whichever way."""

    def add_done_callback(self, fn: "Callable[[Future[Any]], object]") -> None:
        super().add_done_callback(fn)
        # In an event loop's thread this is how asyncio.wrap_future and run_in_executor wait.
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_soon(self._task.run_here)


@contextlib.contextmanager
def _cancelled_by_sigint(task: SyncTask) -> Iterator[None]:
    """asyncio's handler of SIGINT cancels its main task, which cannot run before this one has ended: cancel this one, too.

    Python's own handler raises KeyboardInterrupt in the task, which is as good.
    """
    handler = signal.getsignal(signal.SIGINT)
    if (
        threading.current_thread() is not threading.main_thread()
        or not callable(handler)
        or handler is signal.default_int_handler
    ):
        yield
        return

    def cancel_and_go_on(signum: int, frame: Any) -> None:
        task.request_cancel()
        handler(signum, frame)

    signal.signal(signal.SIGINT, cancel_and_go_on)
    try:
        if task.cancels_heard is not None and _cancels_of_main_task(handler) > task.cancels_heard:
            task.request_cancel()
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is cancel_and_go_on:  # else the task has set another one
            signal.signal(signal.SIGINT, handler)


def _cancels_of_main_task(handler: Any) -> int:
    """How often the main task of `asyncio.run`, whose handler of SIGINT this may be, was asked to stop."""
    main_task = handler.keywords.get("main_task") if isinstance(handler, functools.partial) else None
    return main_task.cancelling() if isinstance(main_task, asyncio.Task) else 0


class SyncProgressExecutor(ProgressExecutor):
    """Runs each task in the calling thread, for tests and for debugging.

    A task runs when its future is first awaited, asked for its result or waited for, or when the executor is left. In an
    event loop, nothing else runs meanwhile; between two tasks the loop does what has fallen due.
    """

    def __init__(self) -> None:
        self._futures: dict[SyncTask, ProgressFuture[Any]] = {}
        self._closed = False
        self._set_up()

    def _enqueue(self, call: Call) -> ProgressFuture[Any]:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        task = SyncTask(self._monitor, call, self._futures)
        future = self._futures[task] = SyncFuture(task)
        return future

    def _close(self) -> None:
        self._closed = True

    def _leave(self) -> None:
        self._close()
        for task, future in tuple(self._futures.items()):
            task.run_here()
            concurrent.futures.wait([future])  # unless another thread runs it, it is done
        self._monitor.poll(everyone=True)

    async def _leave_in_loop(self) -> list[BaseException]:
        self._closed = True
        interrupts: list[BaseException] = []
        while self._futures:
            try:
                await asyncio.gather(*self._futures.values(), return_exceptions=True)
            except asyncio.CancelledError as error:
                interrupts = self._cancel_all() or interrupts or [error]
        return interrupts

    def _pending(self) -> Iterable[Callable[[], object]]:
        return [future._cancel_pending for future in tuple(self._futures.values())]
