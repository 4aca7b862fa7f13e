"""`ThreadPoolProgressExecutor`: the standard library's thread pool; a slot is in the process's own memory."""

import threading
from asyncio import CancelledError
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from time import time
from typing import Any

from .._speedups import Updater
from ..futures import ProgressFuture
from ..slots import Slot
from ..tasks import Call, Task, takes_progress
from .base import ProgressExecutor, executors_to_leave, leave_all


class ThreadTask(Task):
    """Runs in a worker thread of the pool."""

    def __call__(self) -> Any:
        call = self.call
        slot = Slot() if call is not None and takes_progress(call) else None
        if call is None or not self.start(slot, time()):
            raise CancelledError
        fn, args, kwargs = call
        if slot is not None:
            kwargs["progress"] = Updater(slot.buffer)
        return fn(*args, **kwargs)


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
        self._set_up()
        executors_to_leave.add(self)

    def _enqueue(self, call: Call) -> ProgressFuture[Any]:
        return ThreadPoolExecutor.submit(self, ThreadTask(self._board, call))  # type: ignore[return-value]

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

    def _cancel_pending(self) -> None:
        ThreadPoolExecutor.shutdown(self, wait=False, cancel_futures=True)


# Later than the standard library's own hook is registered, so that it runs before it.
threading._register_atexit(leave_all)  # type: ignore[attr-defined]
