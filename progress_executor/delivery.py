"""From samples to callbacks: who is told what, when, and in which thread.

A `Feed` has the callbacks of one future, a `Board` knows what runs on one executor, a `Ticker` looks at boards from an event
loop. Whoever blocks (`result()`, `wait()`, leaving the executor) looks at its board in the same way, so nothing here
runs in a thread of its own and tasks never wait for the caller.
"""

import asyncio
import bisect
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Protocol

from .state import PENDING, ProgressState

INTERVAL = 0.1
"""Seconds between two calls of a callback, unless `check_for_progress` was given another interval."""

logger = logging.getLogger("progress_executor")

ProgressCallback = Callable[[ProgressState, ProgressState], object]


class Source(Protocol):
    """What a feed needs of its task."""

    board: "Board"
    feed: "Feed | None"
    ticker: "Ticker | None"
    interval: float

    @property
    def lazy(self) -> bool: ...
    @property
    def number(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    def run_here(self) -> None: ...
    def request_cancel(self) -> bool: ...
    def state(self) -> ProgressState: ...


class _Listener:
    __slots__ = ("fn", "told")

    def __init__(self, fn: ProgressCallback) -> None:
        self.fn = fn
        self.told = ProgressState(n=0, total=None, status=PENDING)

    def tell(self, state: ProgressState) -> None:
        old, self.told = self.told, state.copy()
        try:
            self.fn(old, state.copy())
        except (Exception, asyncio.CancelledError):
            logger.exception("progress callback %r raised", self.fn)


class Feed:
    """The progress callbacks of one future."""

    def __init__(self, task: Source) -> None:
        self.task = task
        self.home = threading.get_ident()  # whose waiting delivers, if no event loop watches
        self._listeners: list[_Listener] = []
        self._lock = threading.Lock()
        self._deliverer: int | None = None
        self._due = 0.0

    def add(self, fn: ProgressCallback) -> None:
        self._listeners.append(_Listener(fn))

    def remove(self, fn: ProgressCallback) -> None:
        for listener in self._listeners:
            if listener.fn == fn:
                self._listeners.remove(listener)
                return
        raise ValueError(f"{fn!r} is not a progress callback of this future")

    @property
    def empty(self) -> bool:
        """Whether there is nobody to tell; after the end, whether everybody has been told."""
        return not self._listeners

    @property
    def delivering_here(self) -> bool:
        """Whether this is called from one of the callbacks."""
        return self._deliverer == threading.get_ident()

    def driven_by(self, thread: int, waits: bool = False) -> bool:
        """Whether `thread` is to deliver: a running loop that watches comes first, then who waits, then the home."""
        ticker = self.task.ticker
        if ticker is not None and ticker.running:
            return ticker.thread == thread
        return waits or self.home == thread

    def deliver(self, now: bool = False) -> None:
        """Call the callbacks with what changed: once per interval, or `now`; the final state at once, and once only."""
        if self.delivering_here:  # a callback waits for something; the delivery around it looks again when it is back
            return
        if not now and not self.task.finished and monotonic() < self._due:
            return
        if not self._lock.acquire(blocking=self.task.finished):
            return
        self._deliverer = threading.get_ident()
        try:
            while self._deliver_once():
                pass
        finally:
            self._deliverer = None
            self._lock.release()

    def _deliver_once(self) -> bool:
        """Whether the task ended meanwhile, so that there is more to deliver."""
        finished = self.task.finished
        state = self.task.state()
        self._due = monotonic() + self.task.interval
        if finished:
            while self._listeners:  # taken out before the call: once is once, whatever the callback does
                self._listeners.pop(0).tell(state)
            return False
        for listener in tuple(self._listeners):
            if listener.told != state and listener in self._listeners:
                listener.tell(state)
        return self.task.finished


class Board:
    """What runs on one executor, and what ended there without having been told. Its lock guards the tasks' slots."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[Source] = set()
        self.ended: dict[Feed, None] = {}  # in order
        self.cancelling = False  # set once, when everything on the executor is to stop

    def pump(self, everyone: bool = False) -> None:
        """Deliver what this thread is to deliver. Pending tasks cost nothing, running ones without callbacks next to it.

        `everyone` is for the thread that leaves the executor: what has ended is told now, whoever watched it.
        """
        thread = threading.get_ident()
        for feed in tuple(self.ended):
            if everyone or feed.driven_by(thread):
                self.conclude(feed)
        for task in tuple(self.running):
            feed_ = task.feed
            if feed_ is not None and feed_.driven_by(thread):
                feed_.deliver()

    def conclude(self, feed: Feed) -> None:
        """Deliver the final state, and forget the feed unless a callback has added another one."""
        feed.deliver()
        if feed.empty:
            self.ended.pop(feed, None)


class Ticker:
    """Looks at the boards of the watched tasks, in the thread of one event loop; asleep while it watches nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # the other way round it is a strong one: see `of_running_loop`
        self.thread = threading.get_ident()
        self.turn = asyncio.Lock()  # of tasks that run in the loop's own thread: one, then the loop, then the next
        self._watched: Counter[Board] = Counter()
        self._intervals: Counter[float] = Counter()
        self._abandoned: set[Source] = set()
        self._handle: asyncio.TimerHandle | None = None

    @classmethod
    def of_running_loop(cls) -> "Ticker":
        loop = asyncio.get_running_loop()
        ticker = _tickers.get(loop)
        if ticker is None:
            ticker = _tickers[loop] = cls(loop)
        ticker.thread = threading.get_ident()
        return ticker

    @property
    def running(self) -> bool:
        loop = self._loop()
        return loop is not None and loop.is_running()

    def watch(self, task: Source, interval: float) -> None:
        """Deliver the progress of `task` from now on, at most every `interval` seconds."""
        if task.ticker is None or not task.ticker.running:  # another loop that watches it keeps it
            task.ticker = self
        task.interval = interval
        self._watched[task.board] += 1
        self._intervals[interval] += 1
        self._schedule(soon=True)

    def unwatch(self, task: Source, interval: float) -> None:
        """Nobody awaits it any more."""
        _take(self._watched, task.board)
        _take(self._intervals, interval)
        if self._handle is not None and not self._watched and not self._abandoned:
            self._handle.cancel()
            self._handle = None

    def abandon(self, task: Source) -> None:
        """Whoever awaited it was cancelled: watch it until the final state is delivered."""
        self._abandoned.add(task)
        self._schedule()

    def _schedule(self, soon: bool = False) -> None:
        loop = self._loop()
        if self._handle is None and loop is not None and not loop.is_closed() and (self._watched or self._abandoned):
            delay = 0 if soon else min(self._intervals, default=INTERVAL)
            self._handle = loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        self._handle = None
        try:
            for board in {*self._watched, *(task.board for task in self._abandoned)}:
                board.pump()
            self._abandoned = {
                task for task in self._abandoned if not task.finished or (task.feed is not None and not task.feed.empty)
            }
        finally:  # a callback may have been hit by Ctrl-C
            self._schedule()


_tickers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Ticker] = weakref.WeakKeyDictionary()


def _take(counter: Counter[Any], key: object) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


class DeliveringEvent(threading.Event):
    """Takes the place of the event on which `concurrent.futures.wait` and `as_completed` block, to deliver meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._boards: set[Board] = set()
        self._lazy: list[Source] = []  # as they were submitted: `wait` has the futures in a set

    def add(self, task: Source) -> None:
        """The future of `task` is one of those that are waited for."""
        self._boards.add(task.board)
        if task.lazy:
            bisect.insort(self._lazy, task, key=lambda task: task.number)

    def wait(self, timeout: float | None = None) -> bool:
        for pause in waiting(timeout):
            while self._lazy and not self.is_set():
                self._lazy.pop(0).run_here()
            for board in self._boards:
                board.pump()
            if super().wait(pause):
                break
        return self.is_set()


def waiting(timeout: float | None) -> Iterator[float]:
    """For how long to sleep next while waiting and delivering: never over the interval, the last time 0."""
    deadline = None if timeout is None else monotonic() + timeout
    while True:
        left = INTERVAL if deadline is None else deadline - monotonic()
        if left <= 0:
            yield 0
            return
        yield min(left, INTERVAL)
