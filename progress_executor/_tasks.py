"""One submitted call, as the process of the caller knows it: its function and arguments, its slot, its state.

The executors' own kinds of task add how it gets to where it runs.
"""

import asyncio
import contextlib
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from time import time
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from ._ambient import current
from ._interrupts import SigintDeferred
from ._messages import LOG, LOST, Message, Sender
from ._monitor import INTERVAL, KEPT, LoopPoller, Monitor, Subscription
from ._sinks import SharedMessage, View
from ._slots import LAST_TRIES, Slot
from ._speedups import Updater
from ._speedups._layout import OPEN_BYTE
from ._state import CANCELLED, DONE, FAILED, PENDING, RUNNING, ProgressState


def wake_loop(waiter: "asyncio.Future[None]") -> None:
    """Resolve `waiter` in its loop, from whichever thread."""
    loop = waiter.get_loop()
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        # From its own thread not through its pipe: where thousands are cancelled that is full, and no signal finds room.
        if asyncio._get_running_loop() is loop:
            loop.call_soon(_resolve, waiter)
        else:
            loop.call_soon_threadsafe(_resolve, waiter)


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
    cancel_requested: bool = False
    reason: str | None = None  # for which it is to stop
    paused: bool = False  # whether it is to stand still
    was_paused: bool = False  # whether it ever was: else nobody need ask for how long
    timeout_message: str | None = None
    """Which deadline has passed, if it is for that it was asked to stop: written before `cancel_requested`."""
    subscriptions: Sequence[Subscription] = ()
    loop_poller: LoopPoller | None = None
    interval: float = INTERVAL
    started_at: float | None = None
    """When it began to run, in seconds since the epoch; a task in another process says so in its slot."""
    ended_at: float | None = None
    """When it ended, likewise; None also for one that neither takes progress nor had callbacks then."""
    push: Callable[[bool], None] | None = None
    """What each step calls, if the task itself has to tell of it."""
    _asked: Updater | None = None
    _paused_seconds = 0.0
    outlets: tuple[Subscription, ...] = ()
    """Who is told what it says."""
    _sender: Sender | None = None  # made when it says something
    _unread: deque[Message] | None = None  # what has arrived, until it is passed on
    _said: deque[SharedMessage] | None = None  # what was passed on, until it was told to somebody
    _handing_over = False  # a signal handler that comes meanwhile may deliver, and would add to these
    keepalive: object = None
    """Its pool, until it has ended: one that was dropped still replaces workers, and is left at exit."""
    broken: bool = False
    """Whether its worker is dead: it may have been killed in the midst of a write to the slot."""
    _final: ProgressState | None = None

    def __init__(self, monitor: Monitor, call: Call) -> None:
        self.monitor = monitor
        self.call: Call | None = call  # until it has ended: a done future must not keep the arguments alive

    def detach_after_fork(self) -> None:
        """In a forked child, which may look at it: nothing that is done to it there reaches the task of the parent."""

    runs_when_waited_for: bool = False
    """Whether it runs only when somebody waits for it, in that thread."""
    number: int = 0
    """Its place in the order of submission, where that is looked at."""
    link: Any = None
    """To the worker process that it was given to, if it was."""

    def run_here(self) -> None:
        """Run in the calling thread, if it is lazy and nobody else took it."""

    to_be_run: bool = False
    """Whether it is lazy and runs nowhere yet, if it is `run_in_loop` that would run it."""

    async def run_in_loop(self, loop_poller: LoopPoller) -> None:
        """Run in the loop's thread, if it is to be run; nobody hears of its end before what fell due meanwhile."""

    async def wait_in_loop(self, future: "Future[Any]", loop_poller: LoopPoller) -> None:
        """Return when `future` is done."""
        done = asyncio.get_running_loop().create_future()
        Future.add_done_callback(future, lambda _: wake_loop(done))
        del future  # see `ProgressFuture.result`
        await done

    @property
    def monitors(self) -> tuple[Monitor]:
        return (self.monitor,)

    @property
    def parts(self) -> tuple["Task"]:
        return (self,)

    speakers = parts

    @property
    def finished(self) -> bool:
        """Whether the final state is known."""
        return self._final is not None

    def snapshot(self) -> ProgressState:
        """A snapshot; the final one once it has ended."""
        slot = self.slot  # before the final state, as `finish` writes them the other way round
        if slot is not None and self._final is None:
            state = slot.snapshot()
            if self._final is None:  # else the slot may serve another task since
                return state
        if self._final is not None:
            return self._final.copy()
        return {"n": 0, "total": None, "status": PENDING if self.started_at is None else RUNNING}

    def run(self, returned: list[Any] | None = None) -> Any:
        """Call the function, in a thread of this process; append its value, in one step, to `returned` if that is given."""
        call = self.call
        slot = Slot() if call is not None and takes_progress(call) else None
        if call is None or not self.start(slot, time()):
            raise asyncio.CancelledError
        if self.push is not None:
            self.push(True)
        fn, args, kwargs = call
        updater = None
        if slot is None:
            token = current.set(self._updater)
        else:
            kwargs["progress"] = updater = Updater(slot.buffer, self.push, self.say)
            token = current.set(updater)
        try:
            if returned is None:
                return fn(*args, **kwargs)
            returned.append(fn(*args, **kwargs))
        finally:
            current.reset(token)
            updater = updater or self._asked
            if updater is not None and self.slot is not None and self.slot.buffer[OPEN_BYTE]:
                updater._publish_parts()
            if self._sender is not None:
                self._sender.end()

    def say(self, kind: str, payload: Any, size: int) -> None:
        """Called by the task, with each message."""
        sender = self._sender
        if sender is None:
            with self.monitor.lock:  # threads of the task may begin at once
                if self.slot is None:  # it has ended
                    return
                if self._sender is None:
                    self._sender = Sender(self.slot, self.hear, None if self.push is None else self.pass_on)
                sender = self._sender
        sender(kind, payload, size)

    def hear(self, message: Message) -> None:
        """Keep a message until it is passed on."""
        if self._unread is None:
            self._unread = deque(maxlen=KEPT)
        self._unread.append(message)

    def _updater(self) -> Updater:
        """For a function that takes no progress, made when what it calls asks for one: few do, and to make it takes time."""
        with self.monitor.lock:  # threads of the task may ask at once
            if self._final is not None:
                return Updater()
            if self._asked is None:
                slot = Slot()
                slot.start(time() if self.started_at is None else self.started_at)
                slot.pause(self.paused and self._final is None)
                self._asked = Updater(slot.buffer, self.push, self.say)
                self.slot = slot
                if self.outlets:
                    slot.listen()
                if self.cancel_requested:  # see the class: one of both sees what the other wrote
                    slot.cancel(self.reason)
            return self._asked

    def began(self) -> float | None:
        """When it began to run, in seconds since the epoch; None if it has not, or never did."""
        return self.started_at

    def paused_seconds(self) -> float:
        """For how many seconds it has stood still."""
        slot = self.slot
        return self._paused_seconds if slot is None else slot.paused_seconds

    def change_count(self) -> object:
        """What each report changes."""
        slot = self.slot
        return None if slot is None else slot.change_count

    def view(self) -> View:
        """What sinks are told."""
        state = self.snapshot()
        paused = self.paused_seconds() if self.was_paused else 0.0
        return View(state["n"], state["total"], state["status"], self.began(), self.ended_at, paused)

    def start(self, slot: Slot | None, now: float | None) -> bool:
        """It leaves for where it runs, with `slot` for its progress; False if it was cancelled and must not.

        `now` is the time if it runs at once.
        """
        monitor = self.monitor
        self.slot = slot
        monitor.running.add(self)
        if monitor.cancelling:
            self.cancel_requested = True
        if self.cancel_requested:
            return False
        if slot is not None and (self.paused or self.outlets):
            with monitor.lock:  # it may be resumed just now
                slot.pause(self.paused)
                if self.outlets:
                    slot.listen()
        if now is not None:
            self.started_at = now
            if slot is not None:
                slot.start(now)
        return True

    def request_cancel(self, reason: str | None = None) -> bool:
        """Ask it to stop, for a reason if it is the first time; False if it has ended."""
        with self.monitor.lock:  # of two at once, one has its reason told, and whole
            if self._final is not None:
                return False
            if not self.cancel_requested:
                self.reason = reason
                self.cancel_requested = True
            slot = self.slot
            if slot is not None:
                slot.cancel(self.reason)
            return True

    def withdraw(self) -> bool:
        """Take the pending task back from where it waits to begin; False if it has begun."""
        return True

    def checked_kill_after(self, seconds: float | None) -> float | None:
        """The seconds; ValueError if this task cannot be killed."""
        if seconds is not None:
            raise ValueError(
                "kill_after is for tasks of a ProcessPoolProgressExecutor: what runs elsewhere cannot be killed alone"
            )
        return None

    def kill(self) -> bool:
        """Kill the process in which the task runs; False if it is in none yet."""
        return True

    def check_pausing(self) -> None:
        """RuntimeError if it cannot be paused."""

    def pause(self, paused: bool) -> bool:
        """Ask it to stand still, or to go on; False if it has ended."""
        with self.monitor.lock:
            if self._final is not None:
                return False
            self.paused, self.was_paused, slot = paused, True, self.slot
            if slot is not None:
                slot.pause(paused)
                if self._final is not None:  # meanwhile: see `finish`
                    slot.pause(False)
            return True

    def listen(self, subscription: Subscription) -> None:
        """Have it told what the task says, and what it has said, unless somebody was told that already. Once each."""
        with self.monitor.lock:
            self._handing_over = True
            try:
                if self._final is None:
                    self.outlets += (subscription,)
                    if self.slot is not None:
                        self.slot.listen()
                subscription.said.extend(said for said in self._said or () if not said.told)
            finally:
                self._handing_over = False

    @property
    def unheard(self) -> bool:
        """Whether it has said something that was not passed on."""
        return bool(self._unread)

    def pass_on(self) -> None:
        """Pass on to its outlets what it has said."""
        with SigintDeferred(), self.monitor.lock:
            if self._unread and not self._handing_over:
                self._pass_on()

    def _pass_on(self) -> None:
        said, taken, unread = [], 0, self._unread or deque()
        for _ in range(len(unread)):
            kind, payload, size = unread.popleft()
            taken += size
            if kind == LOST:
                kind, payload = LOG, f"[{payload} lost: said faster than they were read]"
            said.append(SharedMessage(kind, payload))
        if self.slot is not None:
            self.slot.take(taken)
        if self._said is None:
            self._said = deque(maxlen=KEPT)
        while self._said and self._said[0].told:
            self._said.popleft()
        self._said.extend(said)
        for subscription in self.outlets:
            subscription.said.extend(said)

    def finish(self, status: str) -> None:
        """Keep the final state, with this status, and forget the slot. The first call counts."""
        slot = self.slot  # first, as in `snapshot`
        if self._final is not None:
            return
        if slot is not None or self.subscriptions:
            self.ended_at = time()
        if slot is None:
            final = _WITHOUT_PROGRESS[status]
        else:
            # Not to wait for each of a hundred workers that have died: all futures of a broken pool are to end at once.
            final = slot.snapshot() if self.broken else slot.snapshot(LAST_TRIES)
            final["status"] = status
            if self.was_paused:
                self._paused_seconds = slot.paused_seconds
        if self._unread:
            with self.monitor.lock:  # another thread may be about to pass on what it has taken
                self._pass_on()
        self._final = final
        if self.paused and slot is not None:
            slot.pause(False)  # nobody can have its threads go on any more
        if self.outlets and slot is not None:
            slot.listen(False)  # nor make room for what they say
        self.slot = self._asked = None
        self.outlets = ()
        self.monitor.running.discard(self)
        for subscription in self.subscriptions:
            self.monitor.ended[subscription] = None
        self.keepalive = None
        self.call = None  # last: it may be what keeps an object alive that does something at its end


def run_call(call: Call, slot: Slot, send: Callable[[Message], object]) -> Any:
    """Call the function, in whatever process, with an Updater that reports in `slot` if it takes one; return its value.

    `send` is called with each message. Raises what the function raises, and `asyncio.CancelledError` if the task was
    cancelled before.
    """
    fn, args, kwargs = call
    sender = Sender(slot, send)
    progress = Updater(slot.buffer, None, sender)
    if takes_progress(call):
        kwargs["progress"] = progress
    token = current.set(progress)
    try:
        progress.check()
        return fn(*args, **kwargs)
    finally:
        current.reset(token)
        progress._publish_parts()
        sender.end()


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
