"""`ProgressGroup`: many futures as one, with a state, callbacks, bars, cancellation and waiting of its own."""

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._following import DoneWaiter
from ._futures import UNDONE, ProgressFuture, Watch, Watchable, check_message, message_of
from ._interrupts import SafeCondition, call_each
from ._monitor import INTERVAL, LoopPoller, Monitor, Subscription, waiting
from ._sinks import Sink, View
from ._state import CANCELLED, DONE, FAILED, PAUSED, PENDING, RUNNING, GroupState, ProgressState
from ._tasks import Task

T = TypeVar("T")


class _GroupSource:
    """What is known of the members of a group, and who is told."""

    subscriptions: Sequence[Subscription] = ()
    loop_poller: LoopPoller | None = None
    interval = INTERVAL
    _began: float | None = None
    _paused_at: float | None = None
    _paused_seconds = 0.0
    _last_end: float | None = None

    def __init__(self, futures: "tuple[ProgressFuture[Any], ...]") -> None:
        self._undone: dict[Task, ProgressFuture[Any]] = {future._task: future for future in futures}
        self.parts: tuple[Task, ...] = tuple(self._undone)
        self._running: set[Task] = set()  # those of them that were seen running: what a tick looks at
        self._ended: list[Task] = []  # in order
        self._counted = _Sums()  # of the first ones among those
        self._lock = threading.RLock()  # a finalizer may ask for the state
        self._done = SafeCondition()  # not an Event: a signal handler may cancel the last member while this waits
        self.finished: bool = not futures
        self._waiters: list[DoneWaiter] = []
        self.monitors: tuple[Monitor, ...] = tuple({task.monitor: None for task in self._undone}) or (Monitor(),)
        waiter = _Waiter(self)
        for future in tuple(self._undone.values()):
            # As `concurrent.futures.wait` does, and not by a done callback, which comes later than whoever sees the future
            # done, and after the slow ones of the user's.
            with future._condition:
                if future._state in UNDONE:
                    list.append(future._waiters, waiter)  # theirs would have it deliver
                else:
                    self._member_ended(future)

    def _member_ended(self, future: "Future[Any]") -> None:
        """Called with the condition of the future held: nothing here may wait."""
        self._ended.append(future._task)  # type: ignore[attr-defined]
        if len(self._ended) < len(self.parts):
            return
        self._leave_to_be_told()  # first: who sees that it is done finds the final state to tell
        with self._done:
            self.finished = True
            self._done.notify_all()
        self._leave_to_be_told()  # a callback may have been added meanwhile
        for monitor in self.monitors:
            monitor.groups.discard(self)
        for done_waiter in self._waiters.copy():
            done_waiter.wake()

    def _leave_to_be_told(self) -> None:
        for subscription in self.subscriptions:
            if not subscription.empty:
                for monitor in self.monitors:
                    monitor.ended[subscription] = None

    def _count_ended(self) -> "_Sums":
        """The sums over all that have ended. Takes effect in one store: Ctrl-C leaves nothing counted by half."""
        counted = self._counted.copy()
        for task in self._ended[counted.members :]:
            self._undone.pop(task, None)
            self._running.discard(task)
            # Without the monitor's lock, in which a finalizer may ask for this state: what has ended changes no more.
            state = Task.snapshot(task)
            counted.add(state, state["status"])
            self._note_beginning(task.started_at)
            if task.ended_at is not None:
                self._last_end = max(self._last_end or 0, task.ended_at)
        self._counted = counted
        return counted.copy()

    def _note_beginning(self, began: float | None) -> None:
        if began is not None and (self._began is None or began < self._began):
            self._began = began

    def snapshot(self) -> GroupState:
        finished = self.finished  # before it is, it is not told to be
        with self._lock:
            sums = self._count_ended()
            for monitor in self.monitors:
                self._running.update(task for task in monitor.running.copy() if task in self._undone)
            running = tuple(self._running)
            pending = len(self._undone) - len(running)
        standing = 0
        for task in running:  # without the lock, as reading takes the one of the monitor
            state, began = task.snapshot(), task.began()  # the group's own clock stands if it was paused as a whole
            # One that has left for a worker process may not have begun. One that ended just now still counts as running.
            sums.add(state, PENDING if began is None else RUNNING)
            standing += task.paused and state["status"] == PAUSED
            self._note_beginning(began)
        state = sums.state(pending)
        if not finished and state["status"] != PENDING:
            state["status"] = PAUSED if 0 < standing == state["running"] else RUNNING
        return state

    def since(self) -> float | None:
        over = self._paused_at is not None and not self.all_paused  # all were resumed, or one by itself, or have ended
        with self._lock:
            began, stood = self._began, self._paused_seconds
            if self._paused_at is not None and began is not None:
                until = self._last_end if self.finished and self._last_end is not None else time()
                stood += max(0.0, until - max(self._paused_at, began))
            if over:
                self._paused_at, self._paused_seconds = None, stood
            return None if began is None else began + stood

    @property
    def all_paused(self) -> bool:
        """Whether all members that have not ended are to stand still, and there are some."""
        undone = [task for task in self.parts if not task.finished]
        return bool(undone) and all(task.paused and not task.cancel_requested for task in undone)

    def pause_clock(self) -> None:
        with self._lock:
            if self._paused_at is None:
                self._paused_at = time()

    def view(self) -> View:
        state, since = self.snapshot(), self.since()
        counts = {name: state[name] for name in (PENDING, RUNNING, DONE, FAILED, CANCELLED)}
        paused = 0.0 if since is None or self._began is None else since - self._began
        return View(state["n"], state["total"], state["status"], self._began, self._last_end, paused, counts)

    @property
    def speakers(self) -> tuple[Task, ...]:
        running = (task for monitor in self.monitors for task in monitor.running.copy())
        return tuple(task for task in running if task in self._undone)

    def listen(self, subscription: Subscription) -> None:
        for task in self.parts:
            task.listen(subscription)

    @property
    def undone(self) -> "dict[Task, ProgressFuture[Any]]":
        return self._undone.copy()

    def wait(self, pause: float) -> bool:
        """Whether all members are done, after so many seconds at most."""
        with self._done:
            return self.finished or self._done.wait(pause)

    def poll(self, waited_for: "set[Any]") -> None:
        for monitor in self.monitors:
            monitor.poll(waited_for=waited_for)

    def set(self, done_waiter: DoneWaiter) -> None:
        self._waiters.append(done_waiter)
        if self.finished:  # perhaps before it was set
            done_waiter.wake()

    def unset(self, done_waiter: DoneWaiter) -> None:
        with contextlib.suppress(ValueError):  # Ctrl-C may have come before it was set
            self._waiters.remove(done_waiter)


class ProgressGroup(Watchable, Generic[T]):
    """The progress of many futures in one place; they may be of several executors.

    `n` and `total` of its state are sums over its members. A member whose total is not known, or not yet, counts as a task
    of average size: the mean of the totals that are known (1 if none is) is added to `total`, and to `n` if it is done. So
    the bar of tasks that never tell a total counts tasks, and that of tasks that tell it when they start does not run ahead.

    TypeError for what is no future of this library's executors.
    """

    def __init__(self, futures: Iterable[ProgressFuture[T]]) -> None:
        self.futures: tuple[ProgressFuture[T], ...] = tuple(futures)
        """The members, in the order in which they were given."""
        for future in self.futures:
            if not isinstance(future, ProgressFuture):
                raise TypeError(f"a group is made of this library's futures, not of {type(future).__name__}")
        self._group = _GroupSource(self.futures)

    # What is to be told

    if TYPE_CHECKING:  # the callbacks of a group are told more than those of a future

        def add_progress_callback(self, fn: Callable[[GroupState, GroupState], object]) -> None: ...
        def remove_progress_callback(self, fn: Callable[[GroupState, GroupState], object]) -> None: ...

    @property
    def state(self) -> GroupState:
        """A snapshot: the sums of `n` and `total`, a status, and how many members are in which.

        The status is "pending" until a member starts, "running" until all have ended, but "paused" while all that run stand
        still, then "failed" if one has failed, "cancelled" if one was cancelled, else "done".
        """
        return self._group.snapshot()

    def done(self) -> bool:
        """Whether all members are done."""
        return self._group.finished

    def _source(self) -> "_GroupSource":
        return self._group

    def _add(self, sink: Sink) -> None:
        super()._add(sink)
        group = self._group
        for monitor in group.monitors:
            monitor.groups.add(group)
        if group.finished:  # meanwhile
            for monitor in group.monitors:
                monitor.groups.discard(group)
        if not self.futures:  # no executor knows of it
            group.poll({group})

    # Cancellation

    def cancel(self, msg: str | None = None, *, kill_after: float | None = None) -> bool:
        """Cancel all members, as their own `cancel(msg, kill_after=...)` does; False if they are all done.

        TypeError and ValueError, with none of them asked, as of a member's.
        """
        check_message(msg)
        for future in self.futures:
            future._task.checked_kill_after(kill_after)
        if self.done():
            return False
        asked: list[bool] = []

        def ask(future: ProgressFuture[T]) -> None:
            asked.append(future.cancel(msg, kill_after=kill_after))

        # The first ones are running: others would take their place.
        interrupts = call_each(partial(ask, future) for future in reversed(self.futures))
        if interrupts:
            raise interrupts.pop()
        return any(asked)

    def set_deadline(
        self, timeout: float | None = None, stall: float | None = None, *, kill_after: float | None = None
    ) -> None:
        """Give each member a deadline of its own, as its `set_deadline()` does; TypeError and ValueError likewise.

        A member that cannot have it raises, and those before it have theirs.
        """
        for future in self.futures:
            future.set_deadline(timeout, stall, kill_after=kill_after)

    # Pausing

    def pause(self) -> bool:
        """Have all members stand still, as their own `pause()` does; False if they are all done. The group's clock stops.

        RuntimeError, with none of them asked, if one cannot be paused.
        """
        for future in self.futures:
            future._task.check_pausing()
        asked = [future.pause() for future in self.futures]  # without the lock, as it takes the one of the monitor
        if any(asked):
            self._group.pause_clock()
        return any(asked)

    def resume(self) -> bool:
        """Have all members go on; False if they are all done."""
        asked = [future.resume() for future in self.futures]
        self._group.since()
        return any(asked)

    @property
    def paused(self) -> bool:
        """Whether all members that are not done are to stand still, and there are some."""
        return self._group.all_paused

    # Waiting

    def result(self, timeout: float | None = None) -> list[T]:
        """The values of all members, in order, when all of them are done; delivers progress while it waits.

        Or raise what the first of them in this order has raised, CancelledError (of concurrent.futures) if that was
        cancelled; TimeoutError after `timeout` seconds, RuntimeError in a progress callback of this group while it is not
        done.
        """
        try:
            if not self._wait(timeout):
                raise TimeoutError
            return _values(self.futures)
        finally:
            self = None  # type: ignore[assignment]  # see `ProgressFuture.result`

    def _wait(self, timeout: float | None) -> bool:
        group = self._group
        if not group.finished and any(subscription.delivering_here for subscription in group.subscriptions):
            raise RuntimeError("a progress callback cannot wait for the group that it watches")
        waited_for = {group, *group.parts}
        lazy = [task for task in group.undone if task.runs_when_waited_for]
        for subscription in group.subscriptions if lazy else ():
            subscription.bind_to_current_thread()  # where they run now, and push their progress
        ran = False
        for pause in waiting(timeout):
            if lazy and not group.finished and (pause or not ran):  # none begins when the time is over
                lazy.pop(0).run_here()
                ran, pause = True, 0
            group.poll(waited_for)
            if group.wait(pause):
                break
        done = group.finished  # before the last delivery: what ends after it has not been told
        group.poll(waited_for)
        self = group = waited_for = None  # type: ignore[assignment]  # this frame is behind those of lazy tasks: see `result`
        return done

    def _set(self, done_waiter: DoneWaiter) -> None:
        self._group.set(done_waiter)

    def _unset(self, done_waiter: DoneWaiter) -> None:
        self._group.unset(done_waiter)

    def check_for_progress(self, interval: float = INTERVAL) -> Coroutine[Any, Any, list[T]]:
        """Await the values of all members, and deliver progress in the running event loop, at most every `interval` seconds.

        Raises like `result`, but asyncio's CancelledError. Cancelling the asyncio task that awaits this cancels the
        members. ValueError if `interval` is not positive.
        """
        return Watch(self, interval)

    def __await__(self) -> Generator[Any, Any, list[T]]:
        return self._watch(INTERVAL).__await__()

    async def _watch(self, interval: float) -> list[T]:
        try:
            await self._watch_to_the_end(interval)
            return _values(self.futures)
        except concurrent.futures.CancelledError as error:
            raise asyncio.CancelledError(*error.args) from None
        finally:
            self = None  # type: ignore[assignment]

    async def _watch_to_the_end(self, interval: float) -> None:
        group, loop_poller = self._group, LoopPoller.of_running_loop()
        loop_poller.watch(group, interval)
        members = group.undone
        done_waiter = DoneWaiter()
        group.set(done_waiter)
        try:
            for task in members:
                loop_poller.adopt(task)
            for task, future in members.items():
                if task.runs_when_waited_for:
                    await task.wait_in_loop(future, loop_poller)
            if not group.finished:
                await done_waiter.woken
            group.poll({group, *members})
        except BaseException as error:
            loop_poller.abandon(group)
            if isinstance(error, asyncio.CancelledError):
                self.cancel(message_of(error))
            raise
        finally:
            group.unset(done_waiter)
            for task in members:
                loop_poller.let_go(task)
            loop_poller.unwatch(group, interval)
            self = group = None  # type: ignore[assignment]


def _values(futures: tuple[ProgressFuture[T], ...]) -> list[T]:
    """What they return, in order; or raise what the first of them that does not has raised."""
    future = None
    try:
        values = []
        for future in futures:
            values.append(future.result(0))
        return values
    finally:
        futures, future = (), None  # see `ProgressFuture.result`


class _Waiter:
    """Tells a group of the ends of its members, which have it for good: it must not make a cycle of them and the group."""

    def __init__(self, group: _GroupSource) -> None:
        self._group = weakref.ref(group)  # a monitor has the group while there is somebody to tell

    def _tell(self, future: "Future[Any]") -> None:
        group = self._group()
        if group is not None:
            group._member_ended(future)

    add_result = add_exception = add_cancelled = _tell


class _Sums:
    """n and total of the members that have a total, and how many have not; how many are in which status."""

    def __init__(self) -> None:
        self._n: float = 0
        self._total: float = 0
        self._known = 0
        self._unknown = 0
        self._unknown_done = 0
        self._counts: Counter[str] = Counter()

    @property
    def members(self) -> int:
        return self._counts.total()

    def copy(self) -> "_Sums":
        copy = _Sums()
        copy.__dict__.update(self.__dict__, _counts=self._counts.copy())
        return copy

    def add(self, state: ProgressState, status: str) -> None:
        """Count a member that is in `status`, whatever it calls its own."""
        self._counts[status] += 1
        if state["total"] is None:
            self._unknown += 1
            self._unknown_done += status == DONE
        else:
            self._known += 1
            self._n += state["n"]
            self._total += state["total"]

    def state(self, pending: int) -> GroupState:
        counts = self._counts
        total = self._total + self._sizes(self._unknown + pending)
        pending += counts[PENDING]
        if not counts.total() - counts[PENDING] and pending:
            status = PENDING
        elif pending or counts[RUNNING]:
            status = RUNNING
        else:
            status = FAILED if counts[FAILED] else CANCELLED if counts[CANCELLED] else DONE
        return GroupState(
            n=_finite(self._n + self._sizes(self._unknown_done)),
            total=_finite(total),
            status=status,
            pending=pending,
            running=counts[RUNNING],
            done=counts[DONE],
            failed=counts[FAILED],
            cancelled=counts[CANCELLED],
        )

    def _sizes(self, count: int) -> float:
        """What `count` members of average size have as their total."""
        if not self._total:
            return count
        sizes = self._total * count / self._known
        return round(sizes) if isinstance(self._total, int) else sizes


def _finite(number: float) -> float:
    """The largest float in place of one that is too large: each number of a member is finite, but their sum may not be."""
    return max(-sys.float_info.max, min(sys.float_info.max, number))
