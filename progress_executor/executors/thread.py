"""`ThreadPoolProgressExecutor`: the standard library's thread pool; a slot is in the process's own memory."""

import threading
from asyncio import CancelledError
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

from .._speedups import Updater
from ..futures import ProgressFuture
from ..slots import Slot
from ..tasks import Call, Task, takes_progress
from .base import ProgressExecutor, cancel_all_if_interrupted


class ThreadTask(Task):
    """Runs in a worker thread of the pool."""

    __slots__ = ()

    def __call__(self) -> Any:
        call = self.call
        slot = Slot()
        slot.start()
        if call is None or not self.start(slot):
            raise CancelledError
        fn, args, kwargs = call
        if takes_progress(call):
            kwargs["progress"] = Updater(slot.buffer)
        return fn(*args, **kwargs)


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
        self._set_up()

    def _enqueue(self, call: Call) -> ProgressFuture[Any]:
        task = ThreadTask(self._board, call)
        return ProgressFuture._adopt(ThreadPoolExecutor.submit(self, task), task)

    def _close(self, cancel_futures: bool) -> Callable[[float | None], bool]:
        ThreadPoolExecutor.shutdown(self, wait=False, cancel_futures=cancel_futures)
        threads = list(self._threads)
        return lambda timeout: _join(threads, timeout)

    def _cancel_pending(self) -> None:
        ThreadPoolExecutor.shutdown(self, wait=False, cancel_futures=True)


def _join(threads: list[threading.Thread], timeout: float | None) -> bool:
    """Wait until all have ended; those that have are taken out. False when `timeout` seconds have passed."""
    deadline = None if timeout is None else monotonic() + timeout
    while threads:
        threads[-1].join(None if deadline is None else max(0, deadline - monotonic()))
        if threads[-1].is_alive():
            return False
        threads.pop()
    return True


# Later than the standard library's own hook is registered, so that it runs before it.
threading._register_atexit(cancel_all_if_interrupted)  # type: ignore[attr-defined]
