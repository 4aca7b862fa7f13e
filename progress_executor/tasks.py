"""One submitted call, as the process of the caller knows it: its function and arguments, its slot, its state.

The executors' own kinds of task add how it gets to where it runs.
"""

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from weakref import WeakKeyDictionary

from .delivery import INTERVAL, Board, Feed, Ticker
from .slots import Slot
from .state import CANCELLED, DONE, FAILED, PENDING, ProgressState


def _resolve(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Task:
    """What an executor's queue holds in place of the user's function. The board's lock guards all that changes."""

    __slots__ = ("_final", "_started_at", "board", "call", "cancel_requested", "feed", "interval", "slot", "ticker")

    def __init__(self, board: Board, call: Call) -> None:
        self.board = board
        self.call: Call | None = call  # until it has ended: a done future must not keep the arguments alive
        self.slot: Slot | None = None
        self.cancel_requested = False
        self.feed: Feed | None = None
        self.ticker: Ticker | None = None
        self.interval = INTERVAL
        self._final: ProgressState | None = None
        self._started_at: float | None = None

    lazy = False
    """Whether it runs only when somebody waits for it, in that thread; then `number` is its place in the order."""
    number = 0

    def run_here(self) -> None:
        """Run in the calling thread, if it is lazy and nobody else took it."""

    async def wait_in_loop(self, future: "Future[Any]", ticker: Ticker) -> None:
        """Return when `future` is done."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def wake(_: "Future[Any]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed before the task ended
                loop.call_soon_threadsafe(_resolve, done)

        Future.add_done_callback(future, wake)
        await done

    @property
    def finished(self) -> bool:
        """Whether the final state is known."""
        return self._final is not None

    def state(self) -> ProgressState:
        with self.board.lock:
            if self._final is not None:
                return self._final.copy()
            if self.slot is not None:
                return self.slot.snapshot()
            return ProgressState(n=0, total=None, status=PENDING)

    def started_at(self) -> float | None:
        """When it began to run, in seconds since the epoch; None if it has not, or never did."""
        with self.board.lock:
            return self._started_at if self.slot is None else self.slot.started_at

    def start(self, slot: Slot) -> bool:
        """It leaves for where it runs, with `slot` for its progress; False if it was cancelled and must not."""
        with self.board.lock:
            if self.board.cancelling:
                self.cancel_requested = True
            if self.cancel_requested or self._final is not None:
                return False
            self.slot = slot
            self.board.running.add(self)
            return True

    def request_cancel(self) -> bool:
        """Ask it to stop; False if it has ended."""
        with self.board.lock:
            if self._final is not None:
                return False
            self.cancel_requested = True
            if self.slot is not None:
                self.slot.cancel()
            return True

    def finish(self, future: "Future[Any]") -> None:
        """Keep the final state and give the slot back. `future` is done.

        Called by whoever comes first: the future's done callback, or somebody who sees it done and asks for the state.
        """
        with self.board.lock:
            if self._final is not None:
                return
            if self.slot is None:
                state = ProgressState(n=0, total=None, status=PENDING)
            else:
                state = self.slot.snapshot()
                self._started_at = self.slot.started_at
            if future.cancelled():
                state["status"] = CANCELLED
            else:
                state["status"] = DONE if Future.exception(future, 0) is None else FAILED
            self._final = state
            self.slot = None
            self.call = None
            self.release_slot()
            self.board.running.discard(self)
        if self.feed is not None:
            self.board.ended[self.feed] = None

    def release_slot(self) -> None:
        """The slot's memory may serve another task."""


_positions: WeakKeyDictionary[Callable[..., Any], int | None] = WeakKeyDictionary()


def takes_progress(call: Call) -> bool:
    """Whether the function has a parameter called `progress` that the caller left to the executor."""
    fn, args, kwargs = call
    function = getattr(fn, "__func__", fn)
    try:
        position = _positions[function]
    except KeyError:
        position = _positions[function] = _position(function)
    except TypeError:  # neither hashable nor weakly referable
        position = _position(function)
    if position is None or "progress" in kwargs:
        return False
    return position < 0 or position >= len(args) + (function is not fn)


def _position(fn: Callable[..., Any]) -> int | None:
    """Where in the arguments `progress` is expected: -1 for by keyword only, None if not at all."""
    if "progress" in getattr(fn, "keywords", ()):  # a partial that has its own already
        return None
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a builtin that does not tell
        return None
    for position, parameter in enumerate(parameters.values()):
        if parameter.name == "progress":
            if parameter.kind is parameter.KEYWORD_ONLY:
                return -1
            return position if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else None
    return None
