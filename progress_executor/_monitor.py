"""From samples to sinks: who is told what, when, and in which thread.

A `Subscription` has the sinks that one thread has added to one future, a `Monitor` knows what runs on one executor, a
`LoopPoller` polls monitors from an event loop. Whoever blocks (`result()`, `wait()`, leaving the executor) polls its monitor
in the same way, so nothing here runs in a thread of its own and tasks never wait for the caller.

The one rule, in `Subscription.is_delivered_by`: a subscription belongs to the thread that made it, or to the event loop that
awaits its future.
"""

import asyncio
import bisect
import logging
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from time import monotonic
from typing import Any, Protocol

from ._interrupts import SafeCondition
from ._sinks import Callback, LogReader, ScreenSink, SharedMessage, Sink, View, listens

INTERVAL = 0.1
"""Seconds between two calls of a callback, unless `check_for_progress` was given another interval."""

logger = logging.getLogger("progress_executor")

KEPT = 100_000
"""How many texts are kept here that nobody delivers, the last ones: a group's, say, when a member of it is waited for."""


_HARMLESS = Exception, asyncio.CancelledError, GeneratorExit
"""What a callback may raise without harm to anybody else; what it raises beyond is for who waits."""


class Source(Protocol):
    """What a subscription needs of its task, or of its group of tasks."""

    subscriptions: "Sequence[Subscription]"
    loop_poller: "LoopPoller | None"
    interval: float

    @property
    def monitors(self) -> "Iterable[Monitor]": ...
    @property
    def parts(self) -> "Iterable[Runnable]": ...
    @property
    def speakers(self) -> "Iterable[Runnable]": ...
    @property
    def finished(self) -> bool: ...
    def view(self) -> View: ...
    def listen(self, subscription: "Subscription") -> None: ...


class Runnable(Source, Protocol):
    """What a monitor and who waits need of a task."""

    monitor: "Monitor"

    @property
    def runs_when_waited_for(self) -> bool: ...
    @property
    def number(self) -> int: ...
    @property
    def to_be_run(self) -> bool: ...
    def run_here(self) -> None: ...
    async def run_in_loop(self, loop_poller: "LoopPoller") -> None: ...
    def request_cancel(self) -> bool: ...
    def kill(self) -> bool: ...
    def detach_after_fork(self) -> None: ...
    @property
    def unheard(self) -> bool: ...
    def pass_on(self) -> None: ...


class _AfterDelivery(threading.local):
    """What the listeners of a thread want to be called when all of them have been told, once each: screens, to draw."""

    def __init__(self) -> None:
        self.calls: dict[Callable[[], object], None] = {}
        self.delivering = False  # whether this thread is in the midst of a delivery

    def add(self, fn: Callable[[], object]) -> None:
        self.calls[fn] = None

    def run(self) -> None:
        while self.calls:
            fn = next(reversed(self.calls))
            try:
                fn()
            except _HARMLESS:
                logger.exception("%r raised", fn)
            self.calls.pop(fn, None)  # not before: what Ctrl-C keeps from being called is called the next time


after_delivery = _AfterDelivery()


class Subscription:
    """The sinks that one thread has added to one future, or to one group."""

    def __init__(self, task: Source) -> None:
        self.task = task
        self.bind_to_current_thread()
        self._sinks: dict[int, Sink] = {}  # by identity, in order
        self.sinks: tuple[Sink, ...] = ()  # the same
        self.said: deque[SharedMessage] = deque(maxlen=KEPT)
        self._deaf = [True]  # empty once it had a sink that listens: a list, as to pop it is one step
        self._lock = threading.RLock()  # a signal handler may wait for something, too
        self._deliverer: int | None = None
        self._due = 0.0

    @classmethod
    def of(cls, task: Source) -> "Subscription":
        """The one of this thread, which is made if there is none. Without a lock: somebody else may fork."""
        for subscription in task.subscriptions:
            if subscription.is_of_this_thread:
                return subscription
        subscription = cls(task)
        vars(task).setdefault("subscriptions", []).append(subscription)
        return subscription

    @property
    def is_of_this_thread(self) -> bool:
        return self._home_thread is threading.current_thread()

    def bind_to_current_thread(self) -> None:
        """From now on it is this thread whose waiting delivers, if no event loop watches."""
        self._home = threading.get_ident()
        self._home_thread = threading.current_thread()

    def add(self, sink: Sink) -> None:
        self._sinks[id(sink)] = sink
        self._note_sinks()

    def _note_sinks(self) -> None:
        while [*map(id, self.sinks)] != [*self._sinks]:  # a signal handler may change them in the midst of this
            self.sinks = tuple(self._sinks.values())

    def begins_to_hear(self) -> bool:
        """Have it hear, from now on; whether its tasks are to be told of it: only the first time."""
        try:
            return self._deaf.pop()
        except IndexError:
            return False

    def remove(self, sink: Sink) -> bool:
        """Whether it was there."""
        found = self._sinks.pop(id(sink), None) is not None
        self._note_sinks()
        return found

    def remove_callback(self, fn: Callable[..., object], kind: type[Callback] | type[LogReader]) -> bool:
        """Remove a sink of this kind that calls `fn`; False if there is none."""
        found = (sink for sink in self.sinks if isinstance(sink, kind) and sink.fn == fn)
        return any(self.remove(sink) for sink in found)

    @property
    def empty(self) -> bool:
        """Whether there is nobody to tell; after the end, whether everybody has been told."""
        return not self._sinks and self._deliverer is None

    @property
    def delivering_here(self) -> bool:
        """Whether this is called from one of the callbacks."""
        return self._deliverer == threading.get_ident()

    def is_delivered_by(self, thread: int, waits: bool = False) -> bool:
        """Whether `thread` is to deliver: a running loop that watches comes first, then who waits, then the home.

        When that thread has ended, it is whoever waits for anything on the executor.
        """
        loop_poller = self.task.loop_poller
        if loop_poller is not None and loop_poller.running:
            return loop_poller.thread == thread
        return waits or self._home == thread or not self._home_thread.is_alive()

    def deliver(self, now: bool = False) -> None:
        """Call the callbacks with what changed: once per interval, or `now`; the final state at once, and once only.

        Not if another thread does: one of the callbacks there may be waiting for what the current thread is to do next.
        """
        if self.delivering_here:  # a callback waits for something; the delivery around it looks again when it is back
            return
        if not now and not self.task.finished:
            if monotonic() < self._due:
                return
            for sink in self.sinks:
                if not sink.idle:
                    break
            else:
                if self._deaf or not self._something_said():
                    return
        # Until nothing is left that another thread has not told, because this one was still about to be done.
        try:
            while self._deliver_alone() and self.task.finished and self._sinks:
                pass
        except BaseException:
            if self.task.finished and self._sinks:
                self._deliver_alone()
            raise

    def _deliver_alone(self) -> bool:
        """Deliver once; False if another thread does."""
        outer = after_delivery.delivering
        try:
            if not self._lock.acquire(blocking=False):
                return False
            self._deliverer = threading.get_ident()
            after_delivery.delivering = True
            self._deliver_once()
            return True
        finally:
            if self._lock._is_owned():  # type: ignore[attr-defined]  # not as `acquire` says: Ctrl-C may come as it returns
                after_delivery.delivering = outer
                self._deliverer = None
                self._lock.release()

    def _something_said(self) -> bool:
        return bool(self.said) or any(task.unheard for task in self.task.speakers)

    def _anybody_listens(self) -> bool:
        """Else it is kept for one that is added."""
        return any(map(listens, self.sinks))

    def _tell_said(self) -> None:
        """Tell what was said until now, and not what is said meanwhile: a task may say more than is ever told."""
        if not self._anybody_listens():
            return
        for task in self.task.speakers:
            task.pass_on()
        for _ in range(len(self.said)):
            if not self._anybody_listens():  # any more: one may remove itself
                return
            message = self.said.popleft()
            interrupt = None
            for sink in self.sinks:
                if id(sink) in self._sinks and listens(sink):
                    message.told = True
                    try:
                        if isinstance(sink, ScreenSink):
                            _call(sink, sink.show, message)
                        else:
                            _call(sink, sink.message, message.kind, message.payload)
                    except BaseException as error:
                        interrupt = error  # when all have been told: it does not come again
            if interrupt is not None:
                raise interrupt

    def _deliver_once(self) -> None:
        finished = self.task.finished
        if not self._deaf:
            self._tell_said()
        view = self.task.view()
        if finished:
            self._conclude(view)
        elif not self.task.finished:  # else it ended in between, and this view may be the final one
            self._due = monotonic() + self.task.interval
            for sink in self.sinks:
                if id(sink) in self._sinks:
                    _call(sink, sink.update, view)

    def _conclude(self, view: View) -> None:
        known = self._sinks.copy()
        while sinks := self.sinks:
            for sink in sinks:
                try:
                    # Before the call: once is once, whatever the callback does; and somebody else may be faster.
                    if not self.remove(sink):
                        continue
                    if id(sink) not in known:  # added by a callback
                        if isinstance(sink, Callback) and sink.fn in _functions(known):
                            continue  # and by itself: it would never end
                        known[id(sink)] = sink
                    _call(sink, sink.close, view)
                except BaseException:
                    # Ctrl-C, perhaps before the call, and nobody would ever close this bar. It may be told twice; not so
                    # a callback, which may have raised this itself.
                    if not isinstance(sink, Callback) or not sink.called_last:
                        self.add(sink)
                    raise

    def close_bars(self) -> None:
        """Have all that is shown end as it stands; the others are still to be told the end."""
        for sink in self.sinks:
            if isinstance(sink, ScreenSink):
                _call(sink, sink.close, self.task.view())


def _functions(sinks: dict[int, Sink]) -> list[Callable[..., object]]:
    return [sink.fn for sink in sinks.values() if isinstance(sink, Callback)]


def _call(sink: Sink, method: Callable[..., object], *args: Any) -> None:
    try:
        method(*args)
    except _HARMLESS:
        logger.exception("%s callback %r raised", "log" if method.__name__ in ("message", "show") else "progress", sink)


class Monitor:
    """What runs on one executor, and what ended there without having been told.

    The lock guards slots that serve one task after the other.
    """

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()  # a signal handler may cancel, or a finalizer
        self.running: set[Runnable] = set()
        self.groups: set[Source] = set()  # of futures that are or were here; those with listeners, until they end
        self.ended: dict[Subscription, None] = {}  # in order
        self.watched: bool = False  # whether there ever was a subscription: most calls of `poll` come where there is none
        self.cancelling: bool = False  # set once, when everything on the executor is to stop
        self._sleepers: list[threading.Condition] = []  # on which threads wait that have nothing to deliver

    def watch(self) -> None:
        """There is a subscription from now on."""
        if not self.watched:
            self.watched = True
            for condition in self._sleepers.copy():
                with condition:
                    condition.notify_all()

    def wait(self, condition: threading.Condition, pause: float, timeout: float | None) -> None:
        """Wait on `condition`, which is held, for `pause` seconds; for long, if there is no subscription and no timeout.

        To be woken by the clock, and not to be, takes as long as a short task.
        """
        if self.watched or timeout is not None or os.name != "posix":  # elsewhere Ctrl-C is not heard meanwhile
            condition.wait(pause)
            return
        self._sleepers.append(condition)
        try:
            if not self.watched:
                condition.wait()
        finally:
            self._sleepers.remove(condition)

    def poll(self, everyone: bool = False, waited_for: Container[Source] = ()) -> None:
        """Deliver what this thread is to deliver. Pending tasks cost nothing, running ones without callbacks next to it.

        `everyone` is for the thread that leaves the executor: what has ended is told now, whoever watched it. Called in a
        callback that waits, it delivers what that waits for and nothing else, or callbacks that wait would nest without end.
        """
        if not self.watched:
            return
        nested = after_delivery.delivering
        thread = threading.get_ident()
        try:
            for source in (*self.running.copy(), *self.groups.copy()):  # not tuple(): a task may start meanwhile
                for subscription in source.subscriptions:
                    waits = source in waited_for
                    if (waits or not nested) and subscription.is_delivered_by(thread, waits):
                        subscription.deliver()
            for subscription in self.ended.copy():
                waits = subscription.task in waited_for
                if everyone or (
                    (waits or not nested) and (subscription.empty or subscription.is_delivered_by(thread, waits))
                ):
                    self._conclude(subscription)
        finally:
            after_delivery.run()

    def deliver(self, subscription: Subscription, now: bool = False) -> None:
        """Deliver to one subscription; after the final state forget it, unless a callback has added another one."""
        try:
            if subscription.task.finished:
                self._conclude(subscription)
            else:
                subscription.deliver(now)
        finally:
            after_delivery.run()

    def close_bars(self) -> None:
        """Have all bars end as they stand: whoever should wait for the end of their tasks does not."""
        subscriptions = [
            subscription for source in (*self.running.copy(), *self.groups.copy()) for subscription in source.subscriptions
        ]
        for subscription in (*self.ended.copy(), *subscriptions):
            subscription.close_bars()
        after_delivery.run()

    def _conclude(self, subscription: Subscription) -> None:
        try:
            subscription.deliver()
        finally:
            if subscription.empty:
                for monitor in subscription.task.monitors:
                    monitor.ended.pop(subscription, None)
                    if not subscription.empty:  # somebody has added a callback meanwhile
                        monitor.ended[subscription] = None


class LoopPoller:
    """Looks at the monitors of the watched tasks, in the thread of one event loop, while there are any.

    One per loop; it must not keep its loop alive, so it holds no handle and is forgotten when it has nothing to watch.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self.thread: int = threading.get_ident()
        self.turn: asyncio.Lock = asyncio.Lock()  # of tasks run in the loop's own thread: one, then the loop, then the next
        self._watched: Counter[Monitor] = Counter()
        self._intervals: Counter[float] = Counter()
        self._abandoned: set[Source] = set()
        self._followed: Counter[Source] = Counter()
        self._due: float | None = None  # when it looks next

    @classmethod
    def of_running_loop(cls) -> "LoopPoller":
        loop = asyncio.get_running_loop()
        loop_poller = _loop_pollers.get(loop)
        if loop_poller is None:
            loop_poller = _loop_pollers[loop] = cls(loop)
        loop_poller.thread = threading.get_ident()
        return loop_poller

    @property
    def running(self) -> bool:
        loop = self._loop()
        return loop is not None and loop.is_running()

    def watch(self, source: Source, interval: float) -> None:
        """Deliver the progress of `source` from now on, at most every `interval` seconds."""
        self.adopt(source)
        source.interval = interval
        for monitor in source.monitors:
            self._watched[monitor] += 1
        self._intervals[interval] += 1
        self._schedule(0)

    def unwatch(self, source: Source, interval: float) -> None:
        """Nobody awaits it any more."""
        self.let_go(source)
        for monitor in source.monitors:
            _take(self._watched, monitor)
        _take(self._intervals, interval)
        self._forget_if_idle()

    def abandon(self, source: Source) -> None:
        """Whoever awaited it was cancelled: watch it until the final state is delivered."""
        self.adopt(source)
        self._abandoned.add(source)
        self._schedule(INTERVAL)

    def follow(self, source: Source) -> None:
        """Deliver its progress as long as somebody in this loop waits for its next state, and now.

        It is not adopted: who follows may leave before the end, and is then to have changed nothing.
        """
        self._followed[source] += 1
        self._schedule(0)

    def unfollow(self, source: Source) -> None:
        """Undo one `follow(source)`."""
        _take(self._followed, source)
        self._forget_if_idle()

    def adopt(self, source: Source) -> None:
        """Deliver its progress in this loop's thread, as long as the loop looks at its monitor."""
        if source.loop_poller is None or not source.loop_poller.running:  # another loop that watches it keeps it
            source.loop_poller = self

    def let_go(self, source: Source) -> None:
        """Nobody in this loop waits for it any more: a callback that is added after its end is for whoever waits then."""
        if source.finished and source.loop_poller is self and source not in self._abandoned:
            source.loop_poller = None

    def _schedule(self, delay: float) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed():
            return
        due = loop.time() + delay
        if self._due is None or due < self._due:
            self._due = due
            loop.call_at(due, self._tick, due)

    def _tick(self, due: float) -> None:
        if due != self._due:  # a later one was asked for first
            return
        self._due = None
        try:
            sources: set[Any] = self._abandoned
            waited_for = sources
            if self._followed:
                sources = sources.union(self._followed)
                waited_for = sources.union(*(source.parts for source in self._followed))
            for monitor in {*self._watched, *(monitor for source in sources for monitor in source.monitors)}:
                monitor.poll(waited_for=waited_for)
            self._abandoned = {
                source
                for source in self._abandoned
                if not source.finished or not all(subscription.empty for subscription in source.subscriptions)
            }
        finally:  # a callback may have been hit by Ctrl-C
            if self._watched or self._abandoned or self._followed:
                self._schedule(min(self._intervals, default=INTERVAL))
            self._forget_if_idle()

    def _forget_if_idle(self) -> None:
        loop = self._loop()
        if loop is None or self._watched or self._abandoned or self._followed:
            return
        if _loop_pollers.get(loop) is self:
            del _loop_pollers[loop]


_loop_pollers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopPoller] = weakref.WeakKeyDictionary()


def _take(counter: Counter[Any], key: object) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


class DeliveringEvent(threading.Event):
    """Takes the place of the event on which `concurrent.futures.wait` and `as_completed` block, to deliver meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._cond = SafeCondition()
        self._tasks: set[Source] = set()
        self._monitors: set[Monitor] = set()
        self._lazy: list[Runnable] = []  # as they were submitted: `wait` has the futures in a set

    def add(self, task: Runnable) -> None:
        """The future of `task` is one of those that are waited for."""
        self._tasks.add(task)
        self._monitors.add(task.monitor)
        if task.runs_when_waited_for:
            bisect.insort(self._lazy, task, key=lambda task: task.number)

    def wait(self, timeout: float | None = None) -> bool:
        for pause in waiting(timeout):
            if self._lazy and not self.is_set():
                self._lazy.pop(0).run_here()
                pause = 0
            self._poll()
            if super().wait(pause):
                self._poll()
                break
        return self.is_set()

    def _poll(self) -> None:
        for monitor in self._monitors:
            monitor.poll(waited_for=self._tasks)


def waiting(timeout: float | None) -> Iterator[float]:
    """For how long to sleep next while waiting and delivering: never over the interval, the last time 0."""
    deadline = None if timeout is None else monotonic() + timeout
    while True:
        left = INTERVAL if deadline is None else deadline - monotonic()
        if left <= 0:
            yield 0
            return
        yield min(left, INTERVAL)
