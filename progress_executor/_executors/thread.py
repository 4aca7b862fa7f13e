"""`ThreadPoolProgressExecutor`: tasks run in threads of this process; a slot is in its own memory."""

import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

from .._futures import ProgressFuture
from .._tasks import Call, Task
from .crew import Crew, PoolExecutor, check_initializer, checked_max_workers, processors

_logger = logging.getLogger("concurrent.futures")
_numbers = itertools.count()


class _Threads(Crew[ProgressFuture[Any]]):
    """Threads that begin with the initializer, and run tasks."""

    def __init__(self, size: int, name: str, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        super().__init__(size, name)
        self._initializer, self._initargs = initializer, initargs

    def next_work(self) -> Callable[[], object]:
        return self._work

    def _work(self) -> None:
        if self._initializer is not None:
            try:
                self._initializer(*self._initargs)
            except BaseException:
                _logger.critical("Exception in initializer:", exc_info=True)
                self.break_down(BrokenThreadPool("A thread initializer failed, the thread pool is not usable anymore"))
                return
        while (future := self.take()) is not None:
            if future.set_running_or_notify_cancel():
                try:
                    future._run()
                except BaseException:  # a done callback raised SystemExit, or somebody else has ended the future
                    _logger.critical("Exception in worker", exc_info=True)
            del future  # or it would live until the next one comes


class ThreadPoolProgressExecutor(PoolExecutor, ThreadPoolExecutor):  # type: ignore[misc]  # _broken
    """A `concurrent.futures.ThreadPoolExecutor`, with all its arguments, whose futures have progress.

    Its threads and its queue are its own: of the standard library's it is a subclass because asyncio's
    `set_default_executor` takes nothing else.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        self._max_workers = checked_max_workers(max_workers, min(32, processors() + 4))
        check_initializer(initializer)
        name = thread_name_prefix or f"ThreadPoolExecutor-{next(_numbers)}"
        crew = _Threads(self._max_workers, name, initializer, initargs)
        self._threads = crew.threads
        self._set_up_pool(crew)

    def _enqueue(self, call: Call) -> ProgressFuture[Any]:
        return self._put(ProgressFuture(Task(self._monitor, call)))
