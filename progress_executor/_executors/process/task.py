"""A task of a process pool, as the caller knows it."""

import types
from functools import partial
from typing import TYPE_CHECKING, Any

from ..._deadlines import checked_seconds
from ..._futures import ProgressFuture
from ..._slots import Slot
from ..._tasks import Call, Task

if TYPE_CHECKING:
    from .link import Link


class ProcessTask(Task):
    """Its slot is in the memory of the worker that has it, and serves another task when this one has ended.

    The monitor's lock keeps them apart.
    """

    link: "Link | None" = None  # to the worker that it was given to
    reports = False  # whether its function is given an Updater

    def attach(self, link: "Link", slot: Slot) -> bool:
        """It is given to a worker; False if it was cancelled before."""
        with self.monitor.lock:
            self.link = link  # first: a finalizer that cancels in the midst of this finds it given
            if self._final is not None or not self.start(slot, None):
                self.link = self.slot = None
                return False
            return True

    def detach(self) -> None:
        """It is pending again."""
        with self.monitor.lock:
            self.link = self.slot = None
            self.monitor.running.discard(self)

    def withdraw(self) -> bool:
        while (link := self.link) is not None:
            if link.take_back(self) is not None:
                return True
            if self.link is link:
                return False
        return True

    def kill(self) -> bool:
        link = self.link
        return self.finished if link is None else link.kill(self)

    def checked_kill_after(self, seconds: float | None) -> float | None:
        return checked_seconds("kill_after", seconds, may_be_zero=True)

    def began(self) -> float | None:
        slot = self.slot
        began = None if slot is None else slot.started_at
        return self.started_at if self._final is not None or began is None else began

    def finish(self, status: str) -> None:
        if self._final is not None:
            return
        kept = (
            self.call,
            self.keepalive,
        )  # what only the task keeps alive must not end, and run anybody's code, under the lock
        with self.monitor.lock:
            if self.slot is not None:
                self.started_at = self.slot.started_at
                if not self.reports and not self.was_paused and self.slot.blank:
                    self.slot = None
            super().finish(status)
        self.link = None
        del kept

    def detach_after_fork(self) -> None:
        with self.monitor.lock:
            self.link = None
            if self.slot is not None:
                self.slot = Slot(bytearray(self.slot.buffer))


class ProcessFuture(ProgressFuture[Any]):
    """The future of such a task."""

    _task: ProcessTask

    def running(self) -> bool:
        # One that was given in advance may have begun before its worker's thread hears of it.
        return super().running() or (not self.done() and self._task.began() is not None)


_PLAIN = frozenset({type(None), bool, int, float, complex})
_FUNCTIONS = frozenset({types.FunctionType, types.BuiltinFunctionType, type})
_DEPTH = 2
_LONG = 200
"""Bytes of a text, and ten times the items of a list, that a plain call may have: together no more than SMALL, or little."""


def is_plain(call: Call | None) -> bool:
    """Whether to pickle the call runs nobody's code, and takes no time: then it may be done while another task runs."""
    if call is None:
        return True
    fn, args, kwargs = call
    if type(fn) is partial:
        return is_plain((fn.func, (*fn.args, *args), {**fn.keywords, **kwargs}))
    return type(fn) in _FUNCTIONS and all(map(_is_plain, args)) and all(map(_is_plain, kwargs.values()))


def _is_plain(value: Any, depth: int = _DEPTH) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is str or kind is bytes:
        return len(value) < _LONG
    return (
        (kind is tuple or kind is list)
        and depth > 0
        and len(value) < _LONG // 10
        and all(_is_plain(item, depth - 1) for item in value)
    )
