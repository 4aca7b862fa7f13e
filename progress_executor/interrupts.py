"""Ctrl-C, kept out of where it would leave things half done."""

import _signal  # type: ignore[import-not-found]
import contextlib
import os
import signal
import threading
from _thread import RLock, allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

_SIGINT = int(signal.SIGINT)  # as an enumeration it takes twice as long to find


def in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


class SigintDeferred:
    """A context in which the main thread's handler of SIGINT is not called, but at its end, if there was one.

    What starts, fills or stops a pool must not be left half done by a KeyboardInterrupt: a work item that is noted but not
    queued keeps the pool from ending. Nor must a bar: nobody would close it. `_signal` is what `signal` wraps, and ten
    times as fast.
    """

    __slots__ = ("_handler", "_noted")

    def __enter__(self) -> Self:
        self._handler: Any = None
        self._noted: tuple[Any, ...] | None = None
        if threading.get_ident() == threading.main_thread().ident:
            handler = _signal.getsignal(_SIGINT)
            if callable(handler):
                self._handler = handler
                _signal.signal(_SIGINT, self._note)
        return self

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """A context, in this one, in which the handler is called; of what came before it hears first."""
        try:
            if self._handler is not None:
                noted, self._noted = self._noted, None
                _signal.signal(_SIGINT, self._handler)
                if noted is not None:
                    self._handler(*noted)
            yield
        finally:
            if self._handler is not None:
                _signal.signal(_SIGINT, self._note)

    def _note(self, *signum_and_frame: Any) -> None:
        self._noted = signum_and_frame

    def __exit__(self, *exc_info: object) -> None:
        if self._handler is not None:
            try:
                _signal.signal(_SIGINT, self._handler)
            except BaseException:  # of another signal's handler, which is called before this one is changed
                _signal.signal(_SIGINT, self._handler)
                raise
            if self._noted is not None:
                self._handler(*self._noted)


class _Holding:
    """Keeps Ctrl-C waiting while the main thread holds locks that it has acquired by themselves, not in a `with` block."""

    def __init__(self) -> None:
        self._locks = 0
        self._deferred = SigintDeferred()

    def begin(self) -> None:
        if in_main_thread():
            if not self._locks:
                self._deferred.__enter__()
            self._locks += 1

    def end(self) -> None:
        if in_main_thread():
            self._locks -= 1
            if not self._locks:
                self._deferred.__exit__()


_holding = _Holding()


def _restore_in_child() -> None:
    """In a forked child: the handler that another thread, which is not there any more, would have called at the end."""
    _holding.__init__()  # type: ignore[misc]
    handler = _signal.getsignal(_SIGINT)
    while isinstance(getattr(handler, "__self__", None), SigintDeferred):
        handler = handler.__self__._handler
        _signal.signal(_SIGINT, handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_in_child)


class SafeCondition(RLock, threading.Condition):  # type: ignore[misc]  # it may be inherited from
    """A condition that Ctrl-C does not leave locked, which would hang whoever notifies it: a pool's threads.

    The standard library's enters and leaves its lock in methods written in Python, and a KeyboardInterrupt often comes there
    when it is a second one, behind one that has interrupted `wait`. These are the lock's own, in C: between such a call and
    the block of `with`, or of `try`, no signal is handled.
    """

    def __init__(self) -> None:
        self._waiters: deque[Any] = deque()

    # As `concurrent.futures.wait` uses them, on one future after the other.

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        _holding.begin()
        if super().acquire(blocking, timeout):
            return True
        _holding.end()
        return False

    def release(self) -> None:
        super().release()
        _holding.end()

    def wait(self, timeout: float | None = None) -> bool:
        waiter = allocate_lock()
        waiter.acquire()
        self._waiters.append(waiter)
        notified, held = False, (1, get_ident())
        try:
            held = self._release_save()  # type: ignore[attr-defined]
            notified = waiter.acquire(True, -1 if timeout is None else max(timeout, 0))
        finally:
            self._acquire_restore(held)  # type: ignore[attr-defined]  # first, as the lock's own `__exit__` is next
            if not notified:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
        return notified


def call_each(calls: Iterable[Callable[[], object]]) -> list[BaseException]:
    """Call all of them, also if a done callback raises KeyboardInterrupt or SystemExit in one; return the last of those.

    In a list, as it is to be taken out where it is raised: its traceback holds the frames.
    """
    interrupts: list[BaseException] = []
    for call in calls:
        try:
            call()
        except (KeyboardInterrupt, SystemExit) as error:
            interrupts[:] = [error]
    return interrupts
