"""`ProcessPoolProgressExecutor`: tasks run in processes of its own, each served by a thread of the caller (`link.py`)."""

import itertools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

from ..._deadlines import checked_seconds, kill_later
from ..._tasks import Call
from ..crew import Crew, PoolExecutor, check_initializer, checked_max_workers, processors
from .launch import Forker
from .link import IN_ADVANCE, MEMORY_SIZE, Link
from .task import ProcessFuture, ProcessTask, is_plain

_DEATHS = 3
"""How many workers in a row may die before they are ready."""
_OVERTAKES = IN_ADVANCE + 1
"""By how many tasks per worker one that was given in advance may be overtaken, and one more before that is seen."""


class Workers(Crew[ProcessFuture]):
    """The threads of one pool, each with a worker process."""

    def __init__(
        self,
        size: int,
        context: Any,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks: int | None,
    ) -> None:
        super().__init__(size, "progress_executor-worker")
        self.context = context
        self.initializer, self.initargs = initializer, initargs
        self.max_tasks = max_tasks
        self.ready = 0  # workers
        self.deaths = 0  # of workers in a row, before they were ready
        self.links: list[Link] = []
        self.stopped = False  # all processes are ended, and none may take their places
        self.forker: Forker | None = None
        self._numbers = itertools.count()
        self._look_at = 0  # the number of the pending task at which to look again for one that was overtaken
        self._forks = context.get_start_method(allow_none=False) == "fork"
        self._unserved: list[Link] = []

    def put(self, future: ProcessFuture) -> None:
        future._task.number = next(self._numbers)
        super().put(future)

    def grow(self) -> None:
        super().grow()
        for _ in range(len(self._unserved)):  # all that were forked at once
            super().grow()

    def next_work(self) -> Callable[[], object]:
        if self._forks and not self.links and not self.threads:
            self._fork_all()
        if not self._unserved:
            # Not in the thread: who has submitted finds the process in `_processes`, or is told why there is none.
            link = Link(self)
            link.launch()
            self.links.append(link)
            self._unserved.append(link)
        return partial(self._serve, self._unserved.pop())

    def give_up(self, work: Any) -> None:
        self._unserved.extend(work.args)

    def _serve(self, link: Link) -> None:
        try:
            link.serve()
        finally:
            self.links.remove(link)

    def _fork_all(self) -> None:
        """As in the standard library, fork all workers before there are threads here that could hold a lock meanwhile."""
        links = [Link(self) for _ in range(self.size)]
        forker = None
        try:
            forker = Forker(self, MEMORY_SIZE)
            for link in links:
                link.launch()
        except BaseException:
            for link in links:
                link.dismiss()
            if forker is not None:
                forker.close()
            raise
        self.links, self._unserved, self.forker = links, links.copy(), forker

    def clean_up(self) -> None:
        while self._unserved:  # whose threads could not be started, or were not needed
            link = self._unserved.pop()
            link.dismiss()
            self.links.remove(link)  # it holds this, which holds what the user gave
        forker, self.forker = self.forker, None
        if forker is not None:
            forker.close()

    def take(self) -> ProcessFuture | None:
        link = self._overtaken()
        if link is not None and (future := link.take_back()) is not None:
            return future
        return super().take()

    def _overtaken(self) -> Link | None:
        """To the worker that was given a task in advance which has been overtaken often enough, if there is one."""
        if not self.pending:  # as a rule, where tasks come one by one
            return None
        try:
            head = self.pending[0]._task.number
        except IndexError:
            return None
        if head >= self._look_at:
            link = min(self.links, key=lambda link: link.waiting)
            if link.waiting + _OVERTAKES * self.size < head:
                return link
            self._look_at = head + self.size  # to look each time would take long where there are many workers
        return None

    def all_pending(self) -> list[ProcessFuture]:
        in_advance = [future for link in tuple(self.links) for future in iter(link.take_back, None)]
        return [*in_advance, *super().all_pending()]

    def bring(self) -> bool:
        for link in self.links:
            if (future := link.take_back()) is not None:
                self.pending.appendleft(future)
                return True
        return False

    def take_plain(self) -> ProcessFuture | None:
        """The next future, if its call is plain, and no other worker is about to take it: none is idle, or starting."""
        if self._idle or self.ready < len(self._serving) or self._overtaken() is not None:
            return None
        try:
            seen = self.pending[0]
            if not is_plain(seen._task.call):
                return None
            future = self.pending.popleft()
        except IndexError:
            return None
        if future is seen or is_plain(future._task.call):
            return future
        self.put_back(future)  # another thread was faster
        return None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be killed."""
        return self.end.reached

    def kill(self) -> bool:
        """Kill the workers that run no task, and do not end though they are let go: for a thread that a task has left."""
        for link in tuple(self.links):
            link.kill_idle()
        return True

    def count_ready(self, change: int) -> None:
        """One more worker is ready, or one less."""
        with self._lock:
            self.ready += change

    def note_death(self, how: str) -> None:
        """A worker has died before it was ready."""
        self.deaths += 1
        if self.deaths >= _DEATHS:
            self.break_down(
                BrokenProcessPool(f"{_DEATHS} worker processes in a row died before they were ready; the last: {how}")
            )


class ProcessPoolProgressExecutor(PoolExecutor, ProcessPoolExecutor):  # type: ignore[misc]  # _broken
    """A `concurrent.futures.ProcessPoolExecutor`, with all its arguments, whose futures have progress.

    Each worker process has pipes and memory of its own. If one dies, the task that it ran fails with `WorkerDied`, another
    worker takes its place, and nobody else notices. Workers ignore SIGINT.

    `kill_after`: for how many seconds to wait, when Ctrl-C has asked all tasks to stop, before the processes of those that
    have not stopped are killed; None: for ever.

    TypeError and ValueError as in the standard library, and for a `kill_after` that is no number, negative or not finite.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        kill_after: float | None = None,
    ) -> None:
        self._max_workers = checked_max_workers(max_workers, processors())
        check_initializer(initializer)
        if mp_context is None:
            mp_context = multiprocessing.get_context("spawn" if max_tasks_per_child is not None else None)
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if mp_context.get_start_method(allow_none=False) == "fork":
                raise ValueError("max_tasks_per_child is incompatible with the 'fork' start method: give another mp_context")
        self._kill_after = checked_seconds("kill_after", kill_after, may_be_zero=True)
        self._mp_context = mp_context
        self._workers = Workers(self._max_workers, mp_context, initializer, initargs, max_tasks_per_child)
        self._set_up_pool(self._workers)

    _takes_chunks = True

    def _enqueue(self, call: Call) -> ProcessFuture:
        return self._put(ProcessFuture(ProcessTask(self._monitor, call)))

    def _cancel_all(self) -> list[BaseException]:
        interrupts = super()._cancel_all()
        for link in tuple(self._workers.links):
            link.kill_unready()
        kill_later(self._workers, self._kill_after)
        return interrupts

    @property
    def _processes(self) -> dict[int, Any]:  # type: ignore[override]
        """The worker processes by their ids, as libraries expect it of a `ProcessPoolExecutor`."""
        return {process.pid: process for link in self._workers.links if (process := link.process) is not None}

    def terminate_workers(self) -> None:
        """End all worker processes with SIGTERM, and take no more tasks: pending ones are cancelled, those that run fail."""
        self._stop_workers(lambda process: process.terminate())

    def kill_workers(self) -> None:
        """Likewise, with SIGKILL."""
        self._stop_workers(lambda process: process.kill())

    def _stop_workers(self, stop: Callable[[Any], object]) -> None:
        self._workers.stopped = True  # first: whoever is started from now on is ended at once
        processes = self._processes.values()
        self.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with suppress(ProcessLookupError):
                stop(process)
