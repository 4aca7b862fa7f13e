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
    """A context in which the main thread's handler of SIGINT is not called; at its end it is, if the signal came.

    For what a KeyboardInterrupt must not leave half done: a bar that is opened and not noted would never be closed. A
    handler that somebody sets meanwhile stays. `_signal` is what `signal` wraps, and ten times as fast.
    """

    __slots__ = ("_active", "_came", "_handler")

    def __enter__(self) -> Self:
        self._handler: Any = None
        self._came: tuple[Any, ...] | None = None
        self._active = True
        if threading.get_ident() == threading.main_thread().ident:
            handler = _signal.getsignal(_SIGINT)
            if callable(handler):
                with contextlib.suppress(ValueError):  # of a subinterpreter, which hears of no signal
                    _signal.signal(_SIGINT, self._note)
                    self._handler = handler
        return self

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """A context, in this one, in which the handler is called; what came before is handled first."""
        try:
            self._restore()
            yield
        finally:
            if self._handler is not None and _signal.getsignal(_SIGINT) == self._handler:
                self._active = True
                _signal.signal(_SIGINT, self._note)

    def _note(self, *signum_and_frame: Any) -> None:
        if self._active:
            self._came = signum_and_frame
        else:  # somebody has kept this handler, and has put it back after the block
            self._handler(*signum_and_frame)

    def _restore(self) -> None:
        if self._handler is None:
            return
        if _signal.getsignal(_SIGINT) == self._note:
            try:
                _signal.signal(_SIGINT, self._handler)
            except BaseException:  # of another signal's handler, which is called before this one is changed
                _signal.signal(_SIGINT, self._handler)
                raise
        self._active = False
        came, self._came = self._came, None
        if came is not None:
            self._handler(*came)

    def __exit__(self, *exc_info: object) -> None:
        self._restore()


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

    def notify_all(self) -> None:
        # As in the standard library, but at once: each task ends here.
        while self._waiters:
            waiter = self._waiters[0]
            try:
                waiter.release()
            except RuntimeError:  # it was, and an interrupt came before it was taken out
                pass
            try:
                self._waiters.remove(waiter)
            except ValueError:
                pass

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
