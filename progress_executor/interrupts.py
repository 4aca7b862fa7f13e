"""Ctrl-C, kept out of where it would leave things half done."""

import _signal  # type: ignore[import-not-found]
import signal
import threading
from typing import Any

_SIGINT = int(signal.SIGINT)  # as an enumeration it takes twice as long to find


class SigintDeferred:
    """A context in which the main thread's handler of SIGINT is not called, but at its end, if there was one.

    What starts, fills or stops a pool must not be left half done by a KeyboardInterrupt: a work item that is noted but not
    queued keeps the pool from ending. Nor must a bar: nobody would close it. `_signal` is what `signal` wraps, and ten
    times as fast.
    """

    __slots__ = ("_handler", "_noted")

    def __enter__(self) -> None:
        self._handler: Any = None
        self._noted: tuple[Any, ...] | None = None
        if threading.get_ident() == threading.main_thread().ident:
            handler = _signal.getsignal(_SIGINT)
            if callable(handler):
                self._handler = handler
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
