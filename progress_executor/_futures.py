"""`ProgressFuture`: a `concurrent.futures.Future` that knows its task's progress and can stop it."""

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Future, InvalidStateError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING, _AcquireFutures
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from . import _state as status
from ._deadlines import kill_later, set_deadline
from ._following import DoneWaiter, Followed, ProgressIterator, S
from ._interrupts import SafeCondition, SigintDeferred, in_main_thread
from ._monitor import (
    INTERVAL,
    DeliveringEvent,
    LoopPoller,
    Source,
    Subscription,
    waiting,
)
from ._sinks import Callback, LogCallback, LogReader, ProgressCallback, Sink, listens
from ._state import ProgressState
from ._tasks import Task

if TYPE_CHECKING:
    from rich.progress import Progress

    from ._bars import Trigger

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_RELEASE_ALL = _AcquireFutures.__exit__.__code__

UNDONE = (PENDING, RUNNING)
"""The states of a future that has no outcome yet."""


class _CallingBack(threading.local):
    """Whether the current thread is in a done callback, which is called where the task has ended."""

    now = False


_calling_back = _CallingBack()


class _Condition(SafeCondition):  # type: ignore[misc]  # as SafeCondition itself
    """The condition of a future.

    `concurrent.futures.wait` and `as_completed` acquire those of all their futures, and release them. Then is the time to
    tell what had ended before: they wait for none that is done.
    """

    def release(self) -> None:
        super().release()
        frame = sys._getframe(1)
        if frame.f_code is _RELEASE_ALL:
            futures = frame.f_locals["self"].futures
            if futures[-1]._condition is self and not _calling_back.now:
                tasks = {
                    future._task for future in futures if isinstance(future, ProgressFuture) and future._task.subscriptions
                }
                for monitor in {task.monitor for task in tasks if task.finished}:
                    monitor.poll(waited_for=tasks)


class Watchable:
    """What can have progress callbacks and bars: a future, or a group of futures."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def state(self) -> ProgressState: ...
        def done(self) -> bool: ...
        def _source(self) -> Source: ...

    def add_progress_callback(self, fn: ProgressCallback) -> None:
        """Have `fn(old_state, new_state)` called when the state has changed since its last call (at first: since pending).

        It is called in the thread that waits for this (or leaves its executor), at most once per interval, in the order
        of addition, and a last time with the final state. What it raises is logged. TypeError if it is not callable.
        """
        if not callable(fn):
            raise TypeError(f"a progress callback must be callable, not {type(fn).__name__}")
        self._add(Callback(fn))

    def remove_progress_callback(self, fn: ProgressCallback) -> None:
        """Undo one `add_progress_callback(fn)`; ValueError if there is none, or if the final state was delivered."""
        if not any(subscription.remove_callback(fn, Callback) for subscription in self._source().subscriptions):
            raise ValueError(f"{fn!r} is not a progress callback of this")

    def add_log_callback(self, fn: LogCallback) -> None:
        """Have `fn(text)` called with each text that the task says with `progress.log(text)`, of a group each of its tasks.

        It is called like a progress callback, with all that was said since the last delivery, in order, and with the last
        text before the final state. What was said before is told, too, if nobody was told it yet. TypeError if it is not
        callable.
        """
        if not callable(fn):
            raise TypeError(f"a log callback must be callable, not {type(fn).__name__}")
        self._add(LogReader(fn))

    def remove_log_callback(self, fn: LogCallback) -> None:
        """Undo one `add_log_callback(fn)`; ValueError if there is none, or if the last text was delivered."""
        if not any(subscription.remove_callback(fn, LogReader) for subscription in self._source().subscriptions):
            raise ValueError(f"{fn!r} is not a log callback of this")

    def add_tqdm_callback(
        self,
        tqdm_cls: Callable[..., Any] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
        triggers: "Iterable[Trigger] | None" = None,
        *,
        trigger: "Iterable[Trigger] | None" = None,
    ) -> None:
        """Show the progress in one bar, made by `tqdm_cls(**init_kwargs)` (by default `tqdm.tqdm`).

        It is made at the first of `triggers`: "now" (the default), "running" when the task starts, "cancelled" when it
        is cancelled; several may be given, and `trigger` is another name for it. ValueError for any other trigger.

        What the task says with `progress.log` is written above the bars.
        """
        from ._bars import TqdmBar  # tqdm is imported when the first bar is wanted

        if triggers is not None and trigger is not None:
            raise TypeError("trigger is another name for triggers: give one of them")
        with SigintDeferred():  # nobody would close a bar that is made and not added
            look = self._source().view
            self._add(TqdmBar(tqdm_cls, init_kwargs, triggers if trigger is None else trigger, look))

    def add_rich_callback(self, progress: "Progress", **fields: Any) -> None:
        """Show the progress in a row of `progress`, a `rich.progress.Progress` that the caller starts and stops.

        `fields` are those of its `add_task`, such as `description`. The status is in the row's field `status`, for a
        `TextColumn("{task.fields[status]}", markup=False)`, say. What the task says is printed on the console of `progress`.
        """
        from ._richbars import RichBar

        self._add(RichBar(progress, fields, self._source().view()))

    def add_sink(self, sink: Sink) -> None:
        """Have a `Sink` of your own told what there is to tell, like a progress callback. TypeError if it is none."""
        if not isinstance(sink, Sink):
            raise TypeError(f"a sink must be a Sink, not {type(sink).__name__}")
        self._add(sink)

    def remove_sink(self, sink: Sink) -> None:
        """Undo `add_sink(sink)`; ValueError if it is not there, or if it was closed."""
        if not any(subscription.remove(sink) for subscription in self._source().subscriptions):
            raise ValueError(f"{sink!r} is not a sink of this")

    def states(self: Followed[S], interval: float = INTERVAL) -> ProgressIterator[S]:
        """Follow the progress: `for state in states()`, in an event loop `async for state in states()`.

        The first turn gives the present state, at once. Each later one waits until the state is another than the last and
        `interval` seconds have passed since that, and gives the newest; what came in between is left out. The final state
        is always given, at once and once, and ends the iteration; nothing is raised for a task that failed or was
        cancelled. To wait for a turn delivers progress, and runs what a SyncProgressExecutor has, like `result`.

        Whoever leaves earlier, however that is, leaves nothing behind, and the task goes on. ValueError if `interval` is not
        positive and finite; RuntimeError, of a `for` loop, in a progress callback of this while it is not done.
        """
        return ProgressIterator(self, interval)

    def _add(self, sink: Sink) -> None:
        source = self._source()
        subscription = Subscription.of(source)
        for monitor in source.monitors:
            monitor.watch()
        subscription.add(sink)
        if listens(sink) and subscription.begins_to_hear():
            source.listen(subscription)
        if source.finished or self.done():  # a task keeps its final state a moment before its future is done
            for monitor in source.monitors:
                monitor.ended[subscription] = None


class ProgressFuture(Watchable, Future[T], Coroutine[Any, Any, T]):
    """The future of a task whose progress can be watched and which can be cancelled while it runs.

    Made by the executors' `submit`. Everything of `concurrent.futures.Future` holds; in addition it can be awaited, or given
    to `asyncio.create_task` as if it were a coroutine.
    """

    def __init__(self, task: Any) -> None:  # a Task: only executors make futures, and it is not part of the public types
        # What the base class would set, without its condition: to make that, and throw it away, is a fifth of a submit.
        self._condition: threading.Condition = _Condition()
        self._state = PENDING
        self._result = self._exception = None
        self._waiters: list[Any] = _Waiters(task)
        self._done_callbacks: list[Any] = []
        self._task: Task = task

    def _is_cancellation(self, exception: BaseException | None) -> bool:
        return isinstance(exception, asyncio.CancelledError) and self._task.cancel_requested

    # Progress

    def _source(self) -> Task:
        return self._task

    @property
    def state(self) -> ProgressState:
        """A snapshot of the task's progress; the final one once the future is done."""
        return self._task.snapshot()

    # Cancellation

    def cancel(self, msg: str | None = None, *, kill_after: float | None = None) -> bool:
        """Stop the task: at once if it is pending, else at its next progress call. False if it is done.

        A running task is only asked: `running()` stays True until it has stopped. If it returns a value all the same,
        the future keeps it. `msg`, of the first call, is the message of the CancelledError that the task gets (cut after 248
        bytes of UTF-8) and of the one that `result()` raises.

        `kill_after`, on processes: if the task still runs after so many seconds, its worker process is killed, and the
        future is cancelled then; a result that has arrived by then is kept. Other tasks notice nothing. Processes that the
        task has started live on.

        TypeError if `msg` is no str or `kill_after` no number, ValueError if that is negative, or not finite, or if the task
        does not run in a process of a ProcessPoolProgressExecutor: nothing else can be killed alone.
        """
        check_message(msg)
        kill_after = self._task.checked_kill_after(kill_after)
        if self._cancel_pending(msg):
            return True
        if self.done():
            return self.cancelled()
        # Its final state may be kept though it is not yet done.
        if self._task.request_cancel(msg):
            kill_later(self._task, kill_after)
            return True
        return self._task.snapshot()["status"] == status.CANCELLED

    def _cancel_pending(self, msg: str | None = None) -> bool:
        """Cancel the task unless it is running, as the standard library does; but whoever waits hears of it at once.

        There it is the worker that tells them when it comes across the work item, and nobody if the executor drops it.
        """
        task = self._task
        kept = task.call, task.keepalive  # must not end, and run anybody's code, under the locks
        with SigintDeferred():
            while self._state == PENDING:
                if not task.withdraw():  # without the locks, which its worker's thread takes behind its own
                    return False
                with task.monitor.lock, self._condition:
                    if self._state == PENDING and task.link is None:  # else it was given in advance since
                        task.reason = msg
                        task.finish(status.CANCELLED)  # first: who sees that the future is cancelled finds the final state
                        self._become_cancelled()
                        break
            else:
                return self._state == CANCELLED_AND_NOTIFIED
        self._invoke_callbacks()
        del kept
        return True

    def _become_cancelled(self) -> None:
        self._state = CANCELLED_AND_NOTIFIED
        for waiter in self._waiters:
            waiter.add_cancelled(self)
        self._condition.notify_all()

    def set_running_or_notify_cancel(self) -> bool:
        """For executors: False if the task must not run, for it was cancelled, or somebody else has ended the future."""
        with self._condition:
            if self._state == PENDING:
                self._state = RUNNING
                return True
            return self._state not in (CANCELLED_AND_NOTIFIED, FINISHED) and super().set_running_or_notify_cancel()

    def cancel_requested(self) -> bool:
        """Whether `cancel()` was called, or a deadline passed, while that could still have an effect."""
        return self._task.cancel_requested or self.cancelled()

    def set_deadline(
        self, timeout: float | None = None, stall: float | None = None, *, kill_after: float | None = None
    ) -> None:
        """Have the task stopped when it has run for `timeout` seconds, or has reported nothing for `stall` seconds.

        Then it is asked to stop as by `cancel()`, and when it has stopped the future fails with a TimeoutError that says
        which of the two. If it returns a value or raises something else all the same, that is the outcome; if it was
        cancelled before, it is cancelled. `kill_after` is that of `cancel()`: so many seconds after it was asked.

        Neither the time in the queue counts nor that for which it stands still: `timeout` counts from when the task began to
        run, `stall` from then or, if it is running, from now. Replaces an earlier deadline; both None removes it; no effect
        if the task is done or was asked to stop. ValueError for what is not positive or not finite, TypeError for what is
        no number.
        """
        set_deadline(self._task, timeout, stall, self._task.checked_kill_after(kill_after))

    def _cancellation(self) -> CancelledError:
        reason = self._task.reason
        return CancelledError() if reason is None else CancelledError(reason)

    # Pausing

    def pause(self) -> bool:
        """Have the task stand still at its next progress call, until `resume()` or `cancel()`. False if it is done.

        A pending one starts all the same, and stands still at its first. While it stands its status is "paused", it keeps
        its thread or process, and the clocks of its bars stand. RuntimeError in the sync executor: nobody could resume it.
        """
        return self._task.pause(True)

    def resume(self) -> bool:
        """Have a paused task go on, within some 50 ms. False if it is done."""
        return self._task.pause(False)

    @property
    def paused(self) -> bool:
        """Whether the task is to stand still: it does when its status says so."""
        return self._task.paused and not self._task.cancel_requested and not self.done()

    def set_result(self, result: T) -> None:
        """For executors."""
        self._task.finish(status.DONE)  # first: those who are woken deliver the final state
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        """For executors. The CancelledError of a task that was asked to stop makes the future cancelled, or overdue."""
        if self._task.timeout_message is not None and self._is_cancellation(exception):
            cancelled, exception = exception, TimeoutError(self._task.timeout_message)
            exception.__cause__ = cancelled  # it shows where the task was
        if self._is_cancellation(exception):
            self._task.finish(status.CANCELLED)
            with self._condition:
                if self._state not in UNDONE:
                    raise InvalidStateError(f"{self._state}: {self!r}")
                self._become_cancelled()
            self._invoke_callbacks()
        else:
            self._task.broken |= isinstance(exception, BrokenExecutor)
            self._task.finish(status.DONE if exception is None else status.FAILED)
            super().set_exception(exception)

    def _end(self, value: Any = None, error: BaseException | None = None) -> None:
        """For pools: set what came out. Logs it if somebody else has done so, or a done callback raises SystemExit."""
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except BaseException:
            logging.getLogger("concurrent.futures").exception("%r could not be ended", self)

    def _run(self) -> None:
        """For executors: run the task in this thread, to its end."""
        try:
            result = self._task.run()
        except BaseException as error:
            self.set_exception(error)
            self = None  # type: ignore[assignment]  # the traceback holds this frame
        else:
            self.set_result(result)

    def add_done_callback(self, fn: "Callable[[Future[T]], object]") -> None:
        """As in the standard library."""
        loop = asyncio._get_running_loop()
        if loop is not None:  # as wrap_future does: from 3.15 on it does not ask for the result, which would deliver
            super().add_done_callback(lambda future: future._deliver_in(loop))  # type: ignore[attr-defined]
        super().add_done_callback(fn)

    def _deliver_in(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._task.subscriptions:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._deliver)

    def _invoke_callbacks(self) -> None:
        # The standard library lets through what is no Exception, which ends a thread pool's worker, or the thread in which
        # all futures of a process pool end: the others would never be done.
        if not self._done_callbacks:
            return
        outer, _calling_back.now = _calling_back.now, True
        interrupt = None
        try:
            for callback in self._done_callbacks:
                try:
                    callback(self)
                except BaseException as error:
                    if not isinstance(error, (KeyboardInterrupt, SystemExit)) or not in_main_thread():
                        logging.getLogger("concurrent.futures").exception("exception calling callback for %r", self)
                    else:
                        interrupt = error  # when all have been called: one of them may wake who waits
            if interrupt is not None:
                raise interrupt
        finally:
            _calling_back.now = outer
            self = interrupt = None  # type: ignore[assignment]  # see `result`

    # Waiting

    def result(self, timeout: float | None = None) -> T:
        """The task's value, or raise what it raised; delivers progress while it waits.

        CancelledError (of concurrent.futures) if it was cancelled, TimeoutError after `timeout` seconds (then it is not
        `done()`) or if a deadline has passed, RuntimeError in a progress callback of this very future while it is not done.
        """
        try:
            if (self._state in UNDONE or self._task.subscriptions) and not self._wait(timeout):
                raise TimeoutError
            if self._state == FINISHED and self._exception is None:
                return self._result  # type: ignore[return-value]  # a done future changes no more: no need for its lock
            if self._state == CANCELLED_AND_NOTIFIED:
                raise self._cancellation()
            return super().result(0)
        finally:
            self = None  # type: ignore[assignment]  # as in the standard library: a traceback of the exception holds this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, None if it returned; waits and raises like `result`."""
        try:
            if (self._state in UNDONE or self._task.subscriptions) and not self._wait(timeout):
                raise TimeoutError
            if self._state == CANCELLED_AND_NOTIFIED:
                raise self._cancellation()
            return super().exception(0)
        finally:
            self = None  # type: ignore[assignment]

    def _wait(self, timeout: float | None) -> bool:
        """Whether it is done; then the final state has been told, if that is for this thread to do."""
        task = self._task
        # In a done callback, who asks for a result that is there does not wait: a worker tells nobody.
        waits = self._state in UNDONE or not _calling_back.now
        try:
            if self._state in UNDONE:
                if any(subscription.delivering_here for subscription in task.subscriptions):
                    raise RuntimeError("a progress callback cannot wait for the future that it watches")
                for pause in waiting(timeout):
                    if task.runs_when_waited_for:
                        task.run_here()
                    if task.monitor.watched:
                        task.monitor.poll()
                        self._deliver()
                    with self._condition:
                        if self._state in UNDONE:
                            task.monitor.wait(self._condition, pause, timeout)
                        if self._state not in UNDONE:
                            break
            done = self._state not in UNDONE  # before the last delivery: what ends after it has not been told
            if waits:
                task.monitor.poll()  # what has ended before is told before
            self._deliver(waits)
            return done
        finally:
            self = None  # type: ignore[assignment]

    def _deliver(self, waits: bool = True) -> None:
        task = self._task
        for subscription in task.subscriptions:
            if subscription.is_delivered_by(threading.get_ident(), waits):
                task.monitor.deliver(subscription)

    # asyncio

    def _set(self, done_waiter: DoneWaiter) -> None:
        with self._condition:
            if self._state in UNDONE:
                list.append(self._waiters, done_waiter)  # not as `_Waiters` do: whoever set it delivers
                return
        done_waiter.wake()

    def _unset(self, done_waiter: DoneWaiter) -> None:
        with self._condition, contextlib.suppress(ValueError):  # Ctrl-C may have come before it was set
            self._waiters.remove(done_waiter)

    def check_for_progress(self, interval: float = INTERVAL) -> Coroutine[Any, Any, T]:
        """Await the task's value, and deliver progress in the running event loop, at most every `interval` seconds.

        The loop goes on delivering until the final state is told, also when the asyncio task that awaits this is
        cancelled; that cancels the future. ValueError if `interval` is not positive.
        """
        return Watch(self, interval)

    async def _watch(self, interval: float) -> T:
        try:
            if self.done():
                self._deliver()
            else:
                await self._watch_to_the_end(interval)
            if self.cancelled():
                raise asyncio.CancelledError(*self._cancellation().args)
            return super().result(0)
        finally:
            self = None  # type: ignore[assignment]  # see `result`

    async def _watch_to_the_end(self, interval: float) -> None:
        task = self._task
        loop_poller = LoopPoller.of_running_loop()
        loop_poller.watch(task, interval)
        try:
            await task.wait_in_loop(self, loop_poller)
            self._deliver()
        except BaseException as error:
            loop_poller.abandon(task)
            if isinstance(error, asyncio.CancelledError):
                self.cancel(message_of(error))
            raise
        finally:
            loop_poller.unwatch(task, interval)
            self = None  # type: ignore[assignment]

    def __await__(self) -> Generator[Any, Any, T]:
        return self._watch(INTERVAL).__await__()

    # The methods of a coroutine: `asyncio.create_task(future)` and TaskGroup take nothing else. Each asyncio task that
    # drives the future has a watch of its own.

    def send(self, value: Any) -> Any:
        try:
            return self._drive(lambda watch: watch.send(value))
        finally:
            self = None  # type: ignore[assignment]

    def throw(self, *exc_info: Any) -> Any:
        try:
            return self._drive(lambda watch: watch.throw(*exc_info))
        finally:
            self = None  # type: ignore[assignment]

    def close(self) -> None:
        """Of the coroutine: stop awaiting. The task is not touched."""
        watch = self.__dict__.get("_watches", {}).pop(_current_task(), None)
        if watch is not None:
            watch.close()

    def _drive(self, step: "Callable[[Watch[T]], Any]") -> Any:
        key = _current_task()
        watches = self.__dict__.setdefault("_watches", {})
        watch = watches.get(key)
        if watch is None:
            watch = watches[key] = Watch(self, INTERVAL)
        try:
            return step(watch)
        except BaseException:  # StopIteration with the value, too: it has come to its end
            watches.pop(key, None)
            raise
        finally:
            self = key = None  # type: ignore[assignment]


class Awaitable(Protocol[R_co]):
    """A future or a group."""

    def _source(self) -> Source: ...
    def _watch(self, interval: float) -> Coroutine[Any, Any, R_co]: ...
    def cancel(self, msg: str | None = None, *, kill_after: float | None = None) -> bool: ...


class Watch(Coroutine[Any, Any, R]):
    """The coroutine in which a future or a group is awaited. ValueError if the interval is not positive.

    A plain one would not do: asyncio cancels a task that has not made its first step by throwing into a coroutine whose
    body has not begun, so that no `except` in it could cancel the future, and nobody would ever close its bar.
    """

    __name__ = "check_for_progress"  # what asyncio calls it where it tells of tasks

    def __init__(self, awaited: Awaitable[R], interval: float) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
        self._awaited: Awaitable[R] | None = awaited  # until it has begun; see `result`
        self._coroutine = awaited._watch(interval)

    def send(self, value: Any) -> Any:
        self._awaited = None
        return self._coroutine.send(value)

    def throw(self, *exc_info: Any) -> Any:
        if self._awaited is not None and isinstance(exc_info[0], asyncio.CancelledError):
            LoopPoller.of_running_loop().abandon(self._awaited._source())
            self._awaited.cancel(message_of(exc_info[0]))
        self._awaited = None
        return self._coroutine.throw(*exc_info)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, R]:
        self._awaited = None
        return self._coroutine.__await__()


def check_message(msg: object) -> None:
    """TypeError if it is none for `cancel`."""
    if msg is not None and not isinstance(msg, str):
        raise TypeError(f"the message must be a str, not {type(msg).__name__}")


def message_of(error: asyncio.CancelledError) -> str | None:
    """What was given to the `cancel` of an asyncio task, if that is a text."""
    return error.args[0] if error.args and isinstance(error.args[0], str) else None


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no running loop
        return None


class _Waiters(list[Any]):
    """Where `concurrent.futures.wait` and `as_completed` leave what is to be told: has them deliver while they block."""

    __slots__ = ("task",)

    def __init__(self, task: Task) -> None:
        self.task = task

    def append(self, waiter: Any) -> None:
        # Called with the conditions of all the futures held, so nobody has set the event yet.
        if not isinstance(waiter.event, DeliveringEvent):
            waiter.event = DeliveringEvent()
        waiter.event.add(self.task)
        super().append(waiter)
