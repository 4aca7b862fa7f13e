"""`ThreadPoolProgressExecutor`: the standard library's thread pool; a slot is in the process's own memory."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from ..futures import ProgressFuture
from ..interrupts import SigintDeferred
from ..tasks import Call, Task
from .base import ProgressExecutor, executors_to_leave, leave_all


class ThreadTask(Task):
    """Runs in a worker thread of the pool."""

    __call__ = Task.run


class _WorkQueue(SimpleQueue[Any]):
    """The pool's queue, which makes futures ours before a worker can see them.

    Later, a worker might be in one of the plain future's methods already, which does not know what `cancel` does.
    """

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item is not None:
            ProgressFuture._adopt(item.future, item.fn if hasattr(item, "fn") else item.task[0])  # the latter from 3.14 on
        super().put(item)


class ThreadPoolProgressExecutor(ProgressExecutor, ThreadPoolExecutor):
    """A `concurrent.futures.ThreadPoolExecutor`, with all its arguments, whose futures have progress."""

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        ThreadPoolExecutor.__init__(self, max_workers, thread_name_prefix, initializer, initargs)
        self._work_queue = _WorkQueue()
        self._starts_threads = True
        # Reentrant: where a thread's initializer fails, it is held while done callbacks are called, which may submit.
        self._shutdown_lock = threading.RLock()  # type: ignore[assignment]
        self._set_up()
        executors_to_leave.add(self)

    def _enqueue(self, call: Call) -> ProgressFuture[Any]:
        task: Any = ThreadTask(self._board, call)
        if self._inside is None:  # else it is left, or at its end cancels what it was given: see `__del__`
            task.keeps = self
        if not self._starts_threads:
            return ThreadPoolExecutor.submit(self, task)  # type: ignore[return-value]
        with SigintDeferred():  # nobody would wait for a thread that was started and not noted
            future = ThreadPoolExecutor.submit(self, task)
            self._starts_threads = len(self._threads) < self._max_workers
        return future  # type: ignore[return-value]

    def _leave(self) -> None:
        if threading.current_thread() in self._threads:
            raise RuntimeError("a task cannot wait for its own executor to end")
        super()._leave()

    def _shut_down(self, wait: bool) -> None:
        ThreadPoolExecutor.shutdown(self, wait=wait)

    def _ended(self) -> bool:
        if not self._shutdown:
            self._shut_down(wait=False)
        return not any(thread.is_alive() for thread in self._threads)

    def _pending(self) -> Iterable[Callable[[], object]]:
        # The standard library's cancel_futures holds its lock meanwhile: a done callback that submits, or waits for a thread
        # that does, would wait for ever.
        items = []
        with self._shutdown_lock, suppress(Empty):
            self._shutdown = True
            while True:
                items.append(self._work_queue.get_nowait())
        self._shut_down(wait=False)  # wakes the workers
        return [item.future.cancel for item in items if item is not None]


# Later than the standard library's own hook is registered, so that it runs before it.
threading._register_atexit(leave_all)  # type: ignore[attr-defined]
