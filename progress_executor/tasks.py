"""One submitted call, as the process of the caller knows it: its function and arguments, its slot, its state.

The executors' own kinds of task add how it gets to where it runs.
"""

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import time
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from .delivery import INTERVAL, Board, Feed, Ticker
from .slots import LAST_TRIES, Slot
from .state import CANCELLED, DONE, FAILED, PENDING, RUNNING, ProgressState


def wake_loop(waiter: "asyncio.Future[None]") -> None:
    """Resolve `waiter` in its loop, from whichever thread."""
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        waiter.get_loop().call_soon_threadsafe(_resolve, waiter)


def _resolve(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


_WITHOUT_PROGRESS = {status: ProgressState(n=0, total=None, status=status) for status in (DONE, FAILED, CANCELLED)}
"""Final states: a pool is handed functions by the thousand that report nothing. `Task.snapshot` gives copies away."""

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Task:
    """What an executor's queue holds in place of the user's function.

    Several threads use it without a lock, which would cost as much as all the rest. Whoever starts it or asks it to stop
    writes first and then reads what the other wrote, so that at least one sees the other; and `finish` may be run twice.
    """

    slot: Slot | None = None  # None while it is pending; and to the end if the function takes no progress
    cancel_requested = False
    feed: Feed | None = None
    ticker: Ticker | None = None
    interval = INTERVAL
    started_at: float | None = None
    """When it began to run, in seconds since the epoch; a task in another process says so in its slot."""
    ended_at: float | None = None
    """When it ended, likewise; None also for one that neither takes progress nor had callbacks then."""
    _final: ProgressState | None = None

    def __init__(self, board: Board, call: Call) -> None:
        self.board = board
        self.call: Call | None = call  # until it has ended: a done future must not keep the arguments alive

    lazy = False
    """Whether it runs only when somebody waits for it, in that thread; then `number` is its place in the order."""
    number = 0

    def run_here(self) -> None:
        """Run in the calling thread, if it is lazy and nobody else took it."""

    async def wait_in_loop(self, future: "Future[Any]", ticker: Ticker) -> None:
        """Return when `future` is done."""
        done = asyncio.get_running_loop().create_future()
        Future.add_done_callback(future, lambda _: wake_loop(done))
        del future  # see `ProgressFuture.result`
        await done

    @property
    def boards(self) -> tuple[Board]:
        return (self.board,)

    @property
    def finished(self) -> bool:
        """Whether the final state is known."""
        return self._final is not None

    def snapshot(self) -> ProgressState:
        """A snapshot; the final one once it has ended."""
        slot = self.slot  # before the final state, as `finish` writes them the other way round
        final = self._final
        if final is not None:
            return final.copy()
        if slot is not None:
            return slot.snapshot()
        return {"n": 0, "total": None, "status": PENDING if self.started_at is None else RUNNING}

    def since(self) -> float | None:
        """When it began to run, in seconds since the epoch; None if it has not, or never did."""
        return self.started_at

    def start(self, slot: Slot | None, now: float | None) -> bool:
        """It leaves for where it runs, with `slot` for its progress; False if it was cancelled and must not.

        `now` is the time if it runs at once.
        """
        board = self.board
        self.slot = slot
        board.running.add(self)
        if board.cancelling:
            self.cancel_requested = True
        if self.cancel_requested:
            return False
        if now is not None:
            self.started_at = now
            if slot is not None:
                slot.start(now)
        return True

    def request_cancel(self) -> bool:
        """Ask it to stop; False if it has ended."""
        if self._final is not None:
            return False
        self.cancel_requested = True
        slot = self.slot
        if slot is not None:
            slot.cancel()
        return True

    def finish(self, status: str) -> None:
        """Keep the final state, with this status, and forget the slot. The first call counts."""
        slot = self.slot  # first, as in `snapshot`
        if self._final is not None:
            return
        if slot is not None or self.feed is not None:
            self.ended_at = time()
        if slot is None:
            final = _WITHOUT_PROGRESS[status]
        else:
            final = slot.snapshot(LAST_TRIES)
            final["status"] = status
        self._final = final
        self.slot = None
        self.board.running.discard(self)
        if self.feed is not None:
            self.board.ended[self.feed] = None
        self.call = None  # last: it may be what keeps an object alive that does something at its end


def takes_progress(call: Call) -> bool:
    """Whether the function has a parameter called `progress` that the caller left to the executor."""
    fn, args, kwargs = call
    if "progress" in kwargs:
        return False
    if type(fn) is FunctionType and not fn.__dict__:
        code = fn.__code__
        if "progress" not in code.co_varnames:
            return False
        position = _position_in_code(code)
    else:
        position = _position(fn)
    return position is not None and (position < 0 or position >= len(args))


def _position_in_code(code: CodeType) -> int | None:
    """Where in the arguments `progress` is expected: -1 for by keyword only, None if not at all.

    For plain functions: closures are made anew for each task, and `inspect.signature` takes as long as a submit.
    """
    position = code.co_varnames.index("progress")
    if position < code.co_posonlyargcount or position >= code.co_argcount + code.co_kwonlyargcount:
        return None
    return position if position < code.co_argcount else -1


def _position(fn: Callable[..., Any]) -> int | None:
    """The same for callables of all kinds; the answer is remembered."""
    function = fn.__func__ if isinstance(fn, MethodType) else fn
    try:
        position = _positions[function]
    except Exception:  # not asked before, or neither hashable nor weakly referable
        position = _position_in_signature(function)
        with contextlib.suppress(Exception):
            _positions[function] = position
    if function is fn or position is None or position < 0:
        return position
    return position - 1 if position else None  # self comes first


_positions: WeakKeyDictionary[Callable[..., Any], int | None] = WeakKeyDictionary()


def _position_in_signature(fn: Callable[..., Any]) -> int | None:
    if isinstance(fn, partial) and "progress" in fn.keywords:
        return None
    try:
        parameters = inspect.signature(fn).parameters
    except Exception:  # a builtin that does not tell, or an object that pretends to have everything
        return None
    parameter = parameters.get("progress")
    if parameter is None or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        return None
    return -1 if parameter.kind is parameter.KEYWORD_ONLY else list(parameters).index("progress")
