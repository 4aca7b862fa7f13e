"""When a task has run for too long, or shows no progress, it is asked to stop; when it does not stop, it is killed.

One daemon thread looks at all tasks of the process that have a deadline or are to be killed, as long as there are any.
Nothing here ends a future, calls anybody back, or keeps a task alive.
"""

import contextlib
import math
import os
import threading
from time import monotonic, time
from typing import Protocol, cast
from weakref import WeakKeyDictionary

from ._interrupts import SafeCondition, SigintDeferred
from ._monitor import INTERVAL, Monitor, logger
from ._state import PAUSED, ProgressState
from ._tasks import Task

_AT_MOST = 1.0
"""Seconds between two looks where nothing is due: to see that there is nothing left to watch."""
_AGAIN = 0.02
"""Seconds after which a task is killed that could not be yet: it is just being given to another worker."""
_LATE = 2 * INTERVAL
"""Of the seconds between two looks, how many count as without progress: where there are more, the task stood still, too."""


def set_deadline(task: Task, timeout: float | None, stall: float | None, kill_after: float | None) -> None:
    """See `ProgressFuture.set_deadline`."""
    timeout, stall = checked_seconds("timeout", timeout), checked_seconds("stall", stall)
    if not task.finished:
        none = timeout is None and stall is None
        _timer.set(task, None if none else _Deadline(task, timeout, stall, kill_after))


def look_for_the_thread() -> float:
    """At exit CPython 3.12 starts no thread: who waits there does its work; in how many seconds again."""
    pause = _timer.look() if _timer.needs_help else None
    return math.inf if pause is None else pause


class Killable(Protocol):
    """What can be killed until it has finished; `kill` gives False if it has to be called again."""

    @property
    def finished(self) -> bool: ...
    def kill(self) -> bool: ...


def kill_later(task: Killable, seconds: float | None) -> None:
    """Have the task, which was asked to stop, killed if it still runs after so many seconds; None: never."""
    if seconds is not None:
        _timer.kill(task, monotonic() + seconds)


def checked_seconds(name: str, value: float | None, may_be_zero: bool = False) -> float | None:
    """As a float, or None; TypeError if it is no number, ValueError if it is negative or not finite."""
    if value is None:
        return None
    try:
        good = math.isfinite(value) and (value > 0 or (may_be_zero and value == 0))
    except TypeError:
        raise TypeError(f"{name} must be a number of seconds or None, not {type(value).__name__}") from None
    except OverflowError:  # of an int
        good = False
    if not good:
        kind = "finite number of seconds that is not negative" if may_be_zero else "positive and finite number of seconds"
        raise ValueError(f"{name} must be a {kind}, not {value!r}")
    return float(value)


class _Deadline:
    """For how many seconds a task may run, and for how many its state may stay as it is."""

    def __init__(self, task: Task, timeout: float | None, stall: float | None, kill_after: float | None) -> None:
        self._timeout, self._stall = timeout, stall
        self.kill_after = kill_after
        self._since: float | None = None
        self._began = 0.0
        self._state: tuple[ProgressState, object] | None = None
        self._idle = 0.0
        self._looked = -math.inf
        now = monotonic()  # first: if it has not begun behind it, it begins later
        self._ran(task, now)
        self._looked = now

    def look(self, task: Task, before: float) -> tuple[float, str | None]:
        """In how many seconds to look again, and what has passed, if it has; `before` is when what runs was sought last."""
        self._looked = max(self._looked, before)
        now = monotonic()
        ran = self._ran(task, now)
        elapsed, self._looked = now - self._looked, now
        if ran is None:
            return INTERVAL, None
        pause = _AT_MOST
        if self._timeout is not None:
            if ran >= self._timeout:
                return pause, f"the task ran for longer than {self._timeout:.12g} s"
            pause = min(pause, self._timeout - ran)
        if self._stall is not None:
            state, pulse = task.snapshot(), task.change_count()
            if (state, pulse) == self._state:
                if not task.paused or state["status"] != PAUSED:
                    self._idle += min(elapsed, _LATE)
            else:
                self._state, self._idle = (state, pulse), 0.0
            if self._idle >= self._stall:
                return pause, f"no progress for {self._stall:.12g} s"
            pause = min(pause, self._stall - self._idle, INTERVAL)
        return pause, None

    def _ran(self, task: Task, now: float) -> float | None:
        """For how many seconds it has been running, without those for which it stood still; None if it has not begun.

        The time at which it began may come from another process, and is one of day: a clock that can be set. So it is
        compared once, at first sight, and it cannot have begun before the last look, which had not seen it; from then on
        the monotonic clock counts. Only whether the clock was set between its beginning and `set_deadline` nobody knows.
        """
        since = task.began()
        if since is None:
            return None
        if since != self._since:  # or it runs again, as on Dask
            self._since = since
            self._began = now - min(max(time() - since, 0), now - self._looked)
        return now - self._began - task.paused_seconds()


class _Timer:
    """The thread and what it watches. While it sleeps it holds nothing that anybody could miss.

    What is asked of a task is asked without the lock, as it may take that of its monitor: whoever holds that, a finalizer
    there, may set a deadline.
    """

    def __init__(self) -> None:
        self._lock = SafeCondition()
        self._monitors: WeakKeyDictionary[Monitor, WeakKeyDictionary[Task, _Deadline]] = WeakKeyDictionary()
        self._kills: WeakKeyDictionary[Killable, float] = WeakKeyDictionary()
        self._thread: threading.Thread | None = None
        self.needs_help = False
        self._news = False
        self._looked = -math.inf

    def set(self, task: Task, deadline: _Deadline | None) -> None:
        with SigintDeferred(), self._lock:
            if deadline is None:
                self._monitors.get(task.monitor, WeakKeyDictionary()).pop(task, None)
                return
            self._monitors.setdefault(task.monitor, WeakKeyDictionary())[task] = deadline
            self._wake()

    def kill(self, task: Killable, when: float) -> None:
        with SigintDeferred(), self._lock:
            self._kills[task] = min(when, self._kills.get(task, when))
            self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="progress_executor-deadlines", daemon=True)
            try:
                self._thread.start()
            except BaseException as error:
                self._thread = None
                if "interpreter shutdown" not in str(error):
                    raise
                self.needs_help = True
        self._news = True
        self._lock.notify()

    def _run(self) -> None:
        while (pause := self.look()) is not None:
            with self._lock:
                if not self._news:
                    self._lock.wait(pause)

    def look(self) -> float | None:
        """Stop what is due; return in how many seconds to look again, None if there is nothing to watch."""
        pause, running = _AT_MOST, []
        before, self._looked = self._looked, monotonic()
        with self._lock:
            self._news = False
            for reference in self._monitors.keyrefs():
                monitor = reference()
                if monitor is None:
                    continue
                deadlines = self._monitors[monitor]
                if not _any_left(deadlines):
                    del self._monitors[monitor]
                    continue
                # Pending tasks cost nothing, however many they are.
                started = cast("set[Task]", monitor.running.copy())
                found = [(task, deadlines[task]) for task in started if task in deadlines]
                running += found
                if len(found) < len(deadlines):  # the start of the others is to be seen
                    pause = INTERVAL
            due, until_kill = self._due_kills()
            pause = min(pause, until_kill)
            if not self._monitors and not self._kills and not due:
                self._thread = None
                return None
        for task in due:
            try:
                if not task.kill():
                    self.kill(task, monotonic() + _AGAIN)
            except Exception:
                logger.exception("%r could not be killed", task)
        for task, deadline in running:
            seconds, passed = deadline.look(task, before)
            pause = min(pause, seconds)
            if passed is not None:
                self._stop(task, deadline, passed)
        return pause

    def _due_kills(self) -> tuple[list[Killable], float]:
        """The tasks that are to be killed now, and in how many seconds the next one is."""
        due: list[Killable] = []
        pause, now = _AT_MOST, monotonic()
        for task, when in list(self._kills.items()):
            if task.finished or when <= now:
                del self._kills[task]
                due += [] if task.finished else [task]
            else:
                pause = min(pause, when - now)
        return due, pause

    def _stop(self, task: Task, deadline: _Deadline, passed: str) -> None:
        with self._lock:  # with it, as a deadline that was removed or set again must not pass
            deadlines = self._monitors.get(task.monitor, WeakKeyDictionary())
            if deadlines.get(task) is not deadline or task.cancel_requested:
                return
            del deadlines[task]
            task.timeout_message = passed
        try:
            task.request_cancel(passed)
        except Exception:
            logger.exception("a task could not be stopped at its deadline")
        kill_later(task, deadline.kill_after)


def _any_left(deadlines: WeakKeyDictionary[Task, _Deadline]) -> bool:
    """Whether one of the tasks may have to be stopped; forgets those that it comes across and need not be."""
    with contextlib.suppress(KeyError):  # it is empty, or has become so
        while True:
            task, deadline = deadlines.popitem()
            if not task.finished and not task.cancel_requested:
                deadlines[task] = deadline
                return True
    return False


_timer = _Timer()


def _begin_anew() -> None:
    """In a forked process: the thread and the tasks are the parent's."""
    global _timer
    _timer = _Timer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
