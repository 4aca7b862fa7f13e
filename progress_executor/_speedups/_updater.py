"""The task's side: `Updater`, which writes a task's progress into its slot and sees in it that the task is to stop.

One source, two forms: Cython compiles this file as `_updater_c` with the C types of `_updater_c.pxd`, and Python runs it as
it is. `if cython.compiled:` marks the few places where the two need different words for the same thing. A step reads no
clock and takes no lock: its fast path is "the control word is zero, so add to the int64".
"""

from __future__ import annotations

import operator
import os
import struct
import sys
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from math import isfinite
from threading import RLock
from time import monotonic
from typing import Any, NoReturn, Self

from ._layout import (
    CALLER_BYTE,
    CANCEL,
    CONTROL,
    ENDED,
    FLOAT,
    GO,
    INSIDE,
    INSIDE_KIND_BYTE,
    INT,
    LISTENS_BYTE,
    LOCKED,
    LOG,
    MESSAGE_BYTE,
    MESSAGE_LENGTH_BYTE,
    MESSAGE_SIZE,
    NO_FLOAT,
    NONE,
    OPEN_BYTE,
    PAUSE,
    PAUSE_BYTE,
    PAUSED_SECONDS,
    PAUSED_SINCE,
    PUBLISH_BYTE,
    PUSHING,
    SEQUENCE,
    SLOT_SIZE,
    STATUS_BYTE,
    STATUS_LENGTH_BYTE,
    STATUS_SIZE,
    TASK_BYTE,
    TEXT_SIZE,
    TOTAL,
    TOTAL_KIND_BYTE,
    N,
    encoded,
)
from ._parts import HAS_ENDED, Counters, Node, counted, own_counters
from ._waiting import wait_while

try:
    import cython
except ModuleNotFoundError:
    from . import _interpreted as cython


if cython.compiled:
    from cython.cimports.progress_executor._speedups._c import (
        PE_VECTORCALL,
        pe_add,
        pe_add_float,
        pe_double,
        pe_fence,
        pe_make_vectorcallable,
        pe_move,
        pe_next,
        pe_small,
        pe_step,
        pe_step_float,
    )

IMPLEMENTATION = "cython" if cython.compiled else "python"

# Interpreted, "test the control word, then add" is two steps. Without the GIL every thread takes the lock.
_LOCKED = LOCKED if not cython.compiled and not getattr(sys, "_is_gil_enabled", lambda: True)() else 0

_fence_lock = RLock()


def _renew_fence_lock() -> None:
    """In a forked child: on CPython 3.14 another thread may have held it."""
    global _fence_lock
    _fence_lock = RLock()


if not cython.compiled and hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_fence_lock)


def fence() -> None:
    """No load or store moves across this call, neither in the compiler nor in the processor."""
    if cython.compiled:
        pe_fence()
    else:
        # Python has no other barriers than those of its locks. On x86 each of them is a full one; on ARM an acquire keeps
        # what follows behind it and a release what precedes before it, so that the two sides of a single pair may still
        # change places inside it. Two pairs cannot be crossed: no acquire passes a release before it (ARMv8, RCsc).
        with _fence_lock:
            pass
        with _fence_lock:
            pass


def _nothing() -> None:
    pass


def _number(value: Any, name: str, exact: bool = False) -> int | float:
    """`value` as an int of 64 bits, or any int where it is to be `exact`, or a finite float."""
    kind = type(value)
    if isinstance(value, (str, bytes, complex)):  # NumPy's have methods that guess
        raise TypeError(f"{name} must be a number, not {kind.__name__}")
    if hasattr(kind, "__index__"):
        try:
            number = int(operator.index(value))
            fitting = _fitting(number)  # OverflowError, also where it is to be exact
            return number if exact else fitting
        except TypeError:  # an array or tensor that has the method for some of its types only
            if not hasattr(kind, "__float__"):
                raise
        except OverflowError:
            raise OverflowError(f"{name} is too large: it is beyond all floats") from None
    if not hasattr(kind, "__float__"):
        raise TypeError(f"{name} must be a number, not {kind.__name__}")
    double = float(value)
    if not isfinite(double):
        raise ValueError(f"{name} must be finite, not {double}")
    return double


def _fitting(number: float) -> int | float:
    """What a slot can hold: an int of 64 bits or a float."""
    if isinstance(number, int) and not -(1 << 63) <= number < 1 << 63:
        return float(number)
    return number


def _total(value: Any) -> int | float | None:
    if value is None:
        return None
    total = _number(value, "total")
    if total < 0:
        raise ValueError(f"total must not be negative, got {total}; None stands for unknown")
    return total


_KEEP: Any = object()
_PART: Any = object()

# What the steps of a part that has ended look at, in place of the control word.
_ENDED_WORD = memoryview(bytearray(8)).cast("q")
_ENDED_WORD[0] = ENDED


def _load(slot: Any, word: int, kind_byte: int) -> Any:
    """The number there; None also where something else has written: that fails no task."""
    kind = slot[kind_byte]
    if kind == INT:
        return struct.unpack_from("q", slot, 8 * word)[0]
    if kind == FLOAT:
        number = struct.unpack_from("d", slot, 8 * word)[0]
        return number if isfinite(number) else None
    return None


class Updater:
    """What a task reports its progress with, and learns from that it is to stop.

    The executors make one for each task whose function has a parameter called `progress`. `Updater()` counts for
    itself, so that such a function can be called without an executor.

    `n`, `total` and `status` can be read and assigned. n and total are ints of 64 bits or finite floats: an int that does
    not fit becomes the nearest float, and n goes on as a float beyond 2**63 - 1. A status is cut after 256 bytes of UTF-8,
    never within a character, and a lone surrogate in it becomes "?". Once the task is cancelled, whatever counts or
    publishes raises `asyncio.CancelledError`, each time anew; what it was given is stored first. Threads of the task may
    share its Updater.

    `sub` makes another one, for a part of the task.
    """

    # _updater_c.pxd has the C types of the fields.
    __slots__ = (
        "__weakref__",
        "_changes",
        "_control",
        "_counters",
        "_doubles",
        "_former",
        "_ints",
        "_lock",
        "_n",
        "_node",
        "_parent",
        "_push",
        "_send",
        "_slot",
        "_words",
    )

    # Three views of the task's slot.
    _slot: memoryview[int]
    _words: memoryview[int]
    _doubles: memoryview[float]
    _counters: Counters  # what it adds to: those in the slot, or a part's own
    if not cython.compiled:
        _place: Any  # compiled: the addresses of both
        _control: memoryview[int]  # what a step looks at: the words of the slot
        _ints: memoryview[int]  # the first view of the counters, found faster
    _n: int  # interpreted: what is in it, read faster than a memoryview
    _push: Callable[[bool], None] | None
    _send: Callable[[str, Any, int], None] | None
    _changes: list[tuple[Any, ...]]
    _node: Any  # its place in the tree of parts; None as long as the task has no parts
    _parent: Updater | None
    _former: Any  # a slot that was left: a thread without the GIL may be in the midst of a step there

    # Made ready by `__new__`: an `__init__` can be left out, and nothing may read C fields that nobody has set.
    if cython.compiled:

        def __cinit__(
            self,
            slot: Any = None,
            push: Callable[[bool], None] | None = None,
            send: Callable[[str, Any, int], None] | None = None,
        ) -> None:
            self._vectorcall = PE_VECTORCALL  # type: ignore[misc]
            self._set_up(slot, push, send)

    else:

        def __new__(
            cls,
            slot: Any = None,
            push: Callable[[bool], None] | None = None,
            send: Callable[[str, Any, int], None] | None = None,
        ) -> Self:
            """Executors pass the slot, a writable buffer of `SLOT_SIZE` bytes, and `push(now)`, called at each step.

            `send(kind, payload, size in bytes)` is called with each message.
            """
            self = object.__new__(cls)
            self._set_up(slot, push, send)
            return self

        def __init_subclass__(cls) -> NoReturn:
            raise TypeError("type 'Updater' is not an acceptable base type")

    def _set_up(self, slot: Any, push: Callable[[bool], None] | None, send: Callable[[str, Any, int], None] | None) -> None:
        self._node = None
        self._parent = None
        self._push = push
        self._send = send
        if slot is _PART:
            return  # `sub` does the rest
        self._lock = RLock()
        self._changes = []
        if slot is None:
            slot = memoryview(bytearray(SLOT_SIZE))
            slot.cast("q")[N + 1] = NO_FLOAT
        view = memoryview(slot).cast("B")
        if len(view) < SLOT_SIZE:
            raise ValueError(f"a slot has {SLOT_SIZE} bytes, not {len(view)}")
        view[TASK_BYTE] = _LOCKED if push is None else _LOCKED | PUSHING
        self._attach((view, view.cast("q"), view.cast("d")), None)

    def _attach(self, slot: tuple[Any, Any, Any], counters: Counters | None) -> None:
        """Have the steps look at this slot, and add to these counters; None: to those in the slot."""
        if cython.compiled:
            control = cython.declare(cython.longlong[::1])
            ints = cython.declare(cython.longlong[::1])
        self._slot, self._words, self._doubles = slot
        self._counters = slot[1:] if counters is None else counters
        if cython.compiled:
            control, ints = self._words, self._counters[0]
            pe_move(cython.address(self._place), cython.address(control[CONTROL]), cython.address(ints[N]))
        else:
            self._ints = self._counters[0]
            self._n, self._control = self._ints[N], self._words

    def _stop_steps(self) -> None:
        """The part has ended: each step takes the slow path, which raises."""
        if cython.compiled:
            control = cython.declare(cython.longlong[::1])
            ints = cython.declare(cython.longlong[::1])
            control, ints = _ENDED_WORD, self._counters[0]
            pe_move(cython.address(self._place), cython.address(control[CONTROL]), cython.address(ints[N]))
        else:
            self._control = _ENDED_WORD

    def _detach(self) -> None:
        """Go on in memory of its own: the slot is about to belong to another task, and threads may still count here."""
        if self._node is not None:
            self._publish_parts()
        with self._lock:
            self._move_out()

    def _detach_in_child(self) -> None:
        """The same in a forked child: nobody there ends what another thread was in the midst of, or gives the lock back."""
        if cython.compiled:
            updater = cython.declare(Updater)
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            lock, changes = RLock(), type(self._changes)()
            for updater in [self] if self._node is None else self._node.updaters():
                updater._lock, updater._changes = lock, changes
        self._move_out()

    def _move_out(self) -> None:
        """Have whoever counts for the task count in a copy of its slot."""
        if cython.compiled:
            updater = cython.declare(Updater)
        own = bytearray(self._slot)
        own[PAUSE_BYTE] = GO  # nobody could have them go on
        own[PUBLISH_BYTE] = 0
        own[LISTENS_BYTE] = 0
        view = memoryview(own)
        slot = view, view.cast("q"), view.cast("d")
        self._former = self._slot
        if self._node is None:
            self._attach(slot, None)
            return
        for updater in self._node.updaters():
            updater._attach(slot, None if updater is self else updater._counters)
        self._node.counters = self._counters

    # Counting

    def __call__(self, iterable: Any = _KEEP, total: Any = None, *, amount: Any = None) -> Any:
        """Iterate over `iterable` and count, or add a number.

        `progress(iterable, total=None)` sets n to 0 and total to the given one, else to the iterable's length or its
        length hint, else to unknown, and returns an iterator over the items. An item counts when the loop's body for
        it has finished. `progress(amount=1)` is `progress.update(amount)`.
        """
        if iterable is _KEEP:
            iterable = 1 if amount is None else amount
        elif amount is not None:
            raise TypeError("progress() takes an iterable or an amount, not both")
        kind = type(iterable)
        if kind is int or kind is float or not hasattr(kind, "__iter__"):
            if kind is int or hasattr(kind, "__index__") or hasattr(kind, "__float__"):
                if total is not None:
                    raise TypeError("total goes with an iterable; to add a number, progress(amount)")
                return self.update(iterable)
            if not hasattr(kind, "__getitem__"):
                raise TypeError(f"progress() takes an iterable or a number, not {kind.__name__}")
        iterator = iter(iterable)
        if total is None:
            try:
                hint = operator.length_hint(iterable, -1)
            except OverflowError:  # range(10**30) has a length that len() cannot say
                hint = -1
            total = None if hint < 0 else hint
        else:
            total = _total(total)
        self._write(0, total)
        return _Iteration(self, iterator)

    def update(self, amount: Any = 1) -> None:
        """Add `amount`, anything with `__index__` or `__float__`; an int stays exact.

        Raises ValueError for NaN and infinities, TypeError for what is no number, OverflowError for an int that is beyond
        all floats; nothing is added then.
        """
        if cython.compiled:
            step = cython.declare(cython.longlong)
            value = cython.declare(cython.double)
            # First the conversion: __index__ may run Python code, and nothing may come between test and store.
            if pe_small(amount, cython.address(step)):
                if pe_step(cython.address(self._place), step):
                    return
            elif pe_double(amount, cython.address(value)) and pe_step_float(cython.address(self._place), value):
                return
        self._add(amount)

    def _add(self, amount: Any) -> None:
        """A step on the slow path."""
        step = _number(amount, "amount", exact=True)
        if self._parent is not None and self._node.ended:
            self.check()
            raise RuntimeError(HAS_ENDED)
        self._count(step)
        self._publish(False)

    def _count(self, step: Any) -> None:
        if cython.compiled:
            value = cython.declare(cython.longlong)
            if isinstance(step, float):
                if pe_add_float(cython.address(self._place), step):
                    return
            elif pe_small(step, cython.address(value)) and pe_add(cython.address(self._place), value):
                return
        elif not _LOCKED and self._count_interpreted(step):
            return
        with self._lock:
            if cython.compiled or not _LOCKED or not self._count_interpreted(step):
                n = counted(self._counters) + step
                if not isfinite(n):
                    raise ValueError("n would become infinite")
                self._write(own=_fitting(n))

    def _count_interpreted(self, step: Any) -> bool:
        # See `_interpreted_update` for why no other thread comes in between.
        ints, doubles = self._counters
        if step.__class__ is int:
            try:
                ints[N] = self._n = self._n + step
            except ValueError:  # more than 64 bits
                return False
            return True
        total = doubles[N + 1] + step
        if total - total != 0.0:
            return False
        doubles[N + 1] = total
        return True

    # State

    @property
    def n(self) -> int | float:
        """How much is done."""
        with self._lock:
            n: int | float = counted(self._counters) if self._node is None else self._node.count()
            return _fitting(n)

    @n.setter
    def n(self, value: Any) -> None:
        self._write(_number(value, "n"))

    @property
    def total(self) -> int | float | None:
        """How much there is to do, None where that is unknown. Assigning a negative one is a ValueError."""
        with self._lock:
            total: int | float | None
            total = _load(self._slot, TOTAL, TOTAL_KIND_BYTE) if self._parent is None else self._node.total
            return total

    @total.setter
    def total(self, value: Any) -> None:
        self._write(total=_total(value))

    @property
    def status(self) -> str:
        """The task's own words for what it is doing, "" for none."""
        with self._lock:
            slot = self._slot
            length = slot[STATUS_LENGTH_BYTE] | slot[STATUS_LENGTH_BYTE + 1] << 8
            return bytes(slot[STATUS_BYTE : STATUS_BYTE + length]).decode("utf-8", "replace")

    @status.setter
    def status(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"status must be a str, not {type(value).__name__}")
        self._write(status=value)

    def reset(self, total: Any = None) -> None:
        """Set n to 0 and, unless it is None, the total; as in tqdm."""
        self._write(0, _KEEP if total is None else _total(total))

    def refresh(self) -> None:
        """Publish now, without waiting for the interval to pass."""
        self._publish_parts()
        self._publish(True)

    @property
    def cancelled(self) -> bool:
        """Whether the task is to stop."""
        return bool(self._slot[CALLER_BYTE] == CANCEL)

    def check(self) -> None:
        """Raise `asyncio.CancelledError` if the task is to stop, stand still if it is to do that; count nothing."""
        if self._slot[PUBLISH_BYTE]:
            self._publish_parts()
        if self._slot[PAUSE_BYTE] == PAUSE:
            self._stand_still()
        if self._slot[CALLER_BYTE] == CANCEL:
            raise CancelledError(*self._reason())

    def _stand_still(self) -> None:
        """Return when the caller has the task go on, or stop."""
        with self._lock:
            times = self._doubles
            if not times[PAUSED_SINCE]:  # of several threads of the task the first one
                times[PAUSED_SINCE] = monotonic()
        try:
            wait_while(self._is_to_stand)
        finally:
            with self._lock:
                times = self._doubles
                since = times[PAUSED_SINCE]
                if since:
                    times[PAUSED_SINCE] = 0.0
                    times[PAUSED_SECONDS] += max(0.0, monotonic() - since)

    def _is_to_stand(self) -> bool:
        slot = self._slot
        return bool(slot[PAUSE_BYTE] == PAUSE and slot[CALLER_BYTE] != CANCEL)

    def _reason(self) -> tuple[str, ...]:
        """What the caller gave as the reason for stopping, if anything."""
        fence()  # it was written before the control byte, which has just been read
        slot = self._slot
        length = min(slot[MESSAGE_LENGTH_BYTE], MESSAGE_SIZE)
        if not length:
            return ()
        return (bytes(slot[MESSAGE_BYTE : MESSAGE_BYTE + length]).decode("utf-8", "replace"),)

    def log(self, text: str) -> None:
        """Have `text` told to the caller's log callbacks, and shown above its bars; cut after 4000 bytes of UTF-8.

        The texts come in the order in which they were said, mostly within 0.1 s, and before the task's end. 64 KiB of them
        wait for the caller, each with 8 bytes more. Who says more waits, if anybody listens; what finds no room within a
        second, or before anybody listens, is lost, and in its place is told how many were. TypeError if it is no str,
        RuntimeError if this part has ended. `asyncio.CancelledError`, when it was said, if the task is to stop; it does not
        wait then.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        if self._parent is not None and self._node.ended:
            self.check()
            raise RuntimeError(HAS_ENDED)
        if self._send is not None:
            data = encoded(text, TEXT_SIZE)
            self._send(LOG, data.decode(), len(data) + 8)
        self._publish(False)

    def close(self) -> None:
        """Publish a last time; a part ends, and counts whole. Never raises, so that it can stand in a `finally`."""
        if self._parent is not None:
            self._end(True)
            return
        self._publish_parts()
        if self._push is not None:
            self._push(True)

    def __enter__(self) -> Self:
        if self._parent is not None and self._node.ended:
            self.check()
            raise RuntimeError(HAS_ENDED)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._parent is None:
            self.close()
            return
        whole = not exc_info or exc_info[0] is None
        self._end(whole)
        if whole:
            self.check()

    # Parts

    def sub(self, weight: Any, total: Any = None) -> Updater:
        """An Updater for a part of what is to be done, which is worth `weight` of the `total` here.

        At a fraction of its own `total` it has counted that fraction of `weight` here: never more than all of it, nothing as
        long as its total is unknown (None), all if its total is 0. It *ends* when its `with` block is left or it is closed,
        and then counts whole; if an exception leaves the block, or nobody has the Updater any more, it ends where it is. Its
        own parts end with it. Afterwards it can be read, but not counted with: RuntimeError.

        There may be any number of parts and parts of parts, one after the other or at the same time, in this and in other
        threads, and steps here beside them. While parts are not done, n is a float where it has to be; when all are, it is
        the exact sum, an int if the weights are ints. Assigning n, or resetting, sets it with what the parts have counted
        until then. The status is the task's, whoever sets it, and stays when a part ends.

        ValueError if `weight` is not positive and finite or `total` is negative, TypeError if they are no numbers,
        OverflowError for an int beyond all floats, RuntimeError if this part has ended, `asyncio.CancelledError` if the task
        is to stop.
        """
        weight = _number(weight, "weight")
        if weight <= 0:
            raise ValueError(f"weight must be positive, got {weight}")
        total = _total(total)
        self.check()
        if cython.compiled:
            part = cython.declare(Updater)
        part = Updater(_PART, self._push, self._send)
        part._lock, part._changes = self._lock, self._changes
        with self._lock:
            if self._node is None:
                self._node = Node(None, 1, None, self._counters, self)
            part._parent = self
            part._attach((self._slot, self._words, self._doubles), own_counters())
            part._node = Node(self._node, weight, total, part._counters, part)
            self._write(act=part._node.begin)
        return part

    def _end(self, whole: bool) -> None:
        node = self._node
        self._write(act=lambda: node.end(whole))
        if self._push is not None:
            self._push(False)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "an Updater cannot be pickled or copied, it belongs to the task that it was made for: "
            "leave the parameter called `progress` to the executor"
        )

    # The slot

    def _publish(self, now: bool) -> None:
        if self._slot[PUBLISH_BYTE] or (self._push is not None and self._node is not None):
            self._publish_parts()
        if self._push is not None:
            self._push(now)
        self.check()

    def _publish_parts(self) -> None:
        """Have the caller see what the parts have counted."""
        self._slot[PUBLISH_BYTE] = 0  # first: a request that comes from now on is seen by the next step
        if self._node is not None:
            self._write(act=_nothing)

    def _write(self, n: Any = _KEEP, total: Any = _KEEP, status: Any = _KEEP, own: Any = _KEEP, act: Any = None) -> None:
        """Set the given fields in one: a reader sees all of the change or nothing of it.

        `own` is n without what parts have counted. Or `act`, which changes what parts the task has; that publishes nothing.
        """
        with self._lock:
            if self._changes:  # re-entrant call of a signal handler or a finalizer: the outer call applies it
                self._changes.append((self, n, total, status, own, act))
                return
            try:
                self._changes.append((self, n, total, status, own, act))
                while self._changes:
                    updater, *change = self._changes[0]
                    updater._apply(*change)
                    del self._changes[0]
            finally:
                self._changes.clear()
        if act is None:
            self._publish(False)

    def _apply(self, n: Any, total: Any, status: Any, own: Any, act: Any) -> None:
        node, words = self._node, self._words
        if act is not None:
            act()
        elif self._parent is not None and node.ended:
            self.check()
            raise RuntimeError(HAS_ENDED)
        sequence = words[SEQUENCE] | 1
        try:
            words[SEQUENCE] = sequence
            fence()
            if own is not _KEEP:
                self._assign(own)
            elif n is not _KEEP:
                self._assign(n) if node is None else self._assign_sum(n)
            if total is not _KEEP:
                self._assign_total(total)
            if status is not _KEEP:
                self._assign_status(encoded(status, STATUS_SIZE))
            if node is not None:
                self._store_sum(node)
            fence()
        finally:
            words[SEQUENCE] = sequence + 1

    # Each in one line: between its stores no signal is handled.

    def _assign(self, n: Any) -> None:
        ints, doubles = self._counters
        if isinstance(n, int):
            ints[N], ints[N + 1], self._n = n, NO_FLOAT, n
        else:
            n = n + 0.0  # no -0.0
            ints[N], doubles[N + 1], self._n = 0, n, 0

    def _assign_sum(self, n: Any) -> None:
        node, ints = self._node, self._counters[0]
        done, error = node.assigned(n)
        ints[N], ints[N + 1], self._n, node.done, node.rounding_error = 0, NO_FLOAT, 0, done, error

    def _assign_total(self, total: Any) -> None:
        slot = self._slot
        if self._parent is not None:
            self._node.total = total
        elif total is None:
            slot[TOTAL_KIND_BYTE] = NONE
        elif isinstance(total, float):
            slot[TOTAL_KIND_BYTE], self._doubles[TOTAL] = FLOAT, total
        else:
            slot[TOTAL_KIND_BYTE], self._words[TOTAL] = INT, total

    def _assign_status(self, text: bytes) -> None:
        slot, size = self._slot, len(text)
        low, high, end = size & 255, size >> 8, STATUS_BYTE + size
        slot[STATUS_LENGTH_BYTE], slot[STATUS_LENGTH_BYTE + 1], slot[STATUS_BYTE:end] = low, high, text

    def _store_sum(self, node: Any) -> None:
        """Have the caller see what all parts of the task have counted."""
        while node.parent is not None:
            node = node.parent
        slot, inside, open_ = self._slot, _fitting(node.inside()), 1 if node.parts else 0
        if isinstance(inside, float):
            slot[OPEN_BYTE], slot[INSIDE_KIND_BYTE], self._doubles[INSIDE] = open_, FLOAT, inside
        else:
            slot[OPEN_BYTE], slot[INSIDE_KIND_BYTE], self._words[INSIDE] = open_, INT, inside


class _Iteration:
    """What `progress(iterable)` returns. Each step counts the item before, whose body has finished, and fetches the next."""

    __slots__ = ("_counting", "_iterator", "_updater")

    _updater: Updater
    _iterator: Iterator[Any]
    _counting: bool  # the loop's body has an item; it counts when the loop comes back

    def __cinit__(self, updater: Updater, iterator: Iterator[Any]) -> None:
        if not isinstance(updater, Updater):  # None would pass for one, and the compiled steps look into it unasked
            raise TypeError(f"an Updater is needed, not {type(updater).__name__}")
        self._updater = updater
        self._iterator = iter(iterator)
        self._counting = False

    if not cython.compiled:
        __init__ = __cinit__

    def __iter__(self) -> Iterator[Any]:
        if cython.compiled:
            return self
        return self._steps()

    def __next__(self) -> Any:
        if self._counting:
            if cython.compiled:
                if not pe_step(cython.address(self._updater._place), 1):
                    self._counting = False
                    self._updater._add(1)
            else:
                self._counting = False
                self._updater.update(1)
        else:
            self._updater.check()
        if cython.compiled:
            return pe_next(cython.cast(cython.p_void, self._iterator), cython.address(self._counting))
        item = next(self._iterator)
        self._counting = True
        return item

    if not cython.compiled:

        def _steps(self) -> Iterator[Any]:
            """The same for a `for` loop: interpreted, a generator is twice as fast."""
            updater = self._updater
            if self._counting:
                self._counting = False
                updater.update(1)
            else:
                updater.check()
            for item in self._iterator:
                try:
                    yield item
                except GeneratorExit:  # the loop was left in its body
                    self._counting = True
                    raise
                control = updater._control  # looked up at every step: see _detach
                try:
                    if not control[CONTROL]:
                        updater._ints[N] = updater._n = updater._n + 1
                        continue
                except ValueError:  # more than 64 bits
                    pass
                updater._add(1)


def _update(updater: Updater, amount: Any) -> Any:
    return updater.update(amount)


if cython.compiled:
    _any = cython.declare(Updater, Updater())
    pe_make_vectorcallable(_any, cython.address(_any._vectorcall), cython.cast(cython.p_void, _update))


def _interpreted_update(self: Updater, amount: Any = 1) -> None:
    # The GIL is offered at calls and backward jumps only (CPython 3.11 to 3.13): nothing comes between the test
    # of the control word and the store.
    control = self._control
    if control[CONTROL] == 0:
        if amount.__class__ is int:
            try:
                self._ints[N] = self._n = self._n + amount
                return
            except ValueError:  # more than 64 bits
                pass
        elif type(amount) is float:
            doubles = self._counters[1]
            total = doubles[N + 1] + amount
            if total - total == 0.0 and control[CONTROL] == 0:  # isfinite() would be a call
                doubles[N + 1] = total
                return
    self._add(amount)


if not cython.compiled:
    # In a function of its own it need not ask, at each call, which form it is.
    _interpreted_update.__doc__ = Updater.update.__doc__
    _interpreted_update.__name__ = "update"
    _interpreted_update.__qualname__ = "Updater.update"
    Updater.update = _interpreted_update  # type: ignore[method-assign]
