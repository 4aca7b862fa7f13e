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
    BIG,
    CALLER_BYTE,
    CANCEL,
    CONTROL,
    FLOAT,
    FLOATING,
    FRAME_SIZE,
    GAVE_UP,
    GO,
    HEARD,
    INT,
    LISTENS_BYTE,
    LOCKED,
    LOST,
    MESSAGE_BYTE,
    MESSAGE_LENGTH_BYTE,
    MESSAGE_SIZE,
    MODE_BYTE,
    N_KIND_BYTE,
    NONE,
    NUMBER_SIZE,
    PART_BYTE,
    PAUSE,
    PAUSE_BYTE,
    PLAIN,
    PUSHING,
    RECORD_BYTE,
    RECORD_END,
    RING_BYTE,
    RING_SIZE,
    SAID,
    SCALE,
    SEQUENCE,
    SLOT_SIZE,
    STANDS_SINCE,
    STATUS_BYTE,
    STATUS_LENGTH_BYTE,
    STATUS_SIZE,
    STOOD,
    TEXT_SIZE,
    TOTAL,
    TOTAL_KIND_BYTE,
    WIDE,
    N,
    encoded,
)
from ._parts import ENDED, Family, Part, heir_of
from ._waiting import wait_while

try:
    import cython
except ModuleNotFoundError:
    from . import _interpreted as cython


if cython.compiled:
    from cython.cimports.progress_executor._speedups._c import (
        PE_CONTROL,
        PE_N,
        PE_VECTORCALL,
        pe_add,
        pe_double,
        pe_fence,
        pe_make_vectorcallable,
        pe_next,
        pe_small,
    )

IMPLEMENTATION = "cython" if cython.compiled else "python"

# Without the GIL "test the control word, then add" is two steps, so every thread has to take the lock.
_BASE_MODE = LOCKED if not getattr(sys, "_is_gil_enabled", lambda: True)() else PLAIN

# The control word of a task that nobody cancelled and whose n is a float, to compare as a whole.
_FLOATING_WORD = int.from_bytes(bytes((0, FLOATING, 0, 0, 0, 0, 0, 0)), sys.byteorder)

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


def _number(value: Any, name: str) -> int | float:
    """`value` as an exact int or a finite float."""
    kind = type(value)
    if isinstance(value, (str, bytes, complex)):  # NumPy's have methods that guess
        raise TypeError(f"{name} must be a number, not {kind.__name__}")
    if hasattr(kind, "__index__"):
        try:
            return int(operator.index(value))
        except TypeError:  # an array or tensor that has the method for some of its types only
            if not hasattr(kind, "__float__"):
                raise
    if not hasattr(kind, "__float__"):
        raise TypeError(f"{name} must be a number, not {kind.__name__}")
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"{name} must be finite, not {number}")
    return number


def _total(value: Any) -> int | float | None:
    if value is None:
        return None
    total = _number(value, "total")
    if total < 0:
        raise ValueError(f"total must not be negative, got {total}; None stands for unknown")
    return total


def _has_room(words: Any, size: int) -> bool:
    """Whether a text of so many bytes finds room in the ring."""
    return bool(0 <= words[SAID] - words[HEARD] <= RING_SIZE - FRAME_SIZE - size and words[SAID] < 1 << 62)


def _say(slot: Any, text: bytes) -> None:
    """Write `text` into the ring; where it finds no room it is counted as lost."""
    words = slot.cast("q")
    lost = min(max(words[LOST], 0), 0xFFFFFFFE)
    if not _has_room(words, len(text)):
        words[LOST] = lost + 1
        return
    data = struct.pack("II", len(text), lost) + text
    at = words[SAID] % RING_SIZE
    end = min(len(data), RING_SIZE - at)  # where it is cut in two, the other half comes at the beginning
    slot[RING_BYTE + at : RING_BYTE + at + end] = data[:end]
    slot[RING_BYTE : RING_BYTE + len(data) - end] = data[end:]
    fence()
    words[SAID] += len(data)
    words[LOST] = 0


_PATIENCE = 1.0
"""Seconds for which a task waits that says more than is read, if nothing is read at all."""

_KEEP: Any = object()

# What an Updater that does not hold its task's slot looks at instead: all that it does takes the lock. Nobody writes here.
_AWAY = memoryview(bytearray(SLOT_SIZE))
_AWAY[MODE_BYTE] = LOCKED


def _store(record: bytearray, word: int, kind_byte: int, number: Any, name: str) -> None:
    """Write `number` (None: unknown) where it belongs in a slot's bytes."""
    if number is None:
        record[kind_byte] = NONE
    elif isinstance(number, float):
        if not isfinite(number):
            raise ValueError(f"{name} would become infinite")
        record[kind_byte] = FLOAT
        struct.pack_into("d", record, 8 * word, number)
    elif number.bit_length() < 64:
        record[kind_byte] = INT
        struct.pack_into("q", record, 8 * word, number)
    elif number.bit_length() < 8 * NUMBER_SIZE:
        record[kind_byte] = BIG
        record[8 * word : 8 * word + NUMBER_SIZE] = number.to_bytes(NUMBER_SIZE, sys.byteorder, signed=True)
    else:
        raise OverflowError(f"{name} must fit {8 * NUMBER_SIZE} bits")


def _check_size(number: Any, name: str) -> None:
    _store(bytearray(RECORD_END), N, N_KIND_BYTE, number, name)


def _load(slot: Any, word: int, kind_byte: int, otherwise: Any) -> Any:
    """The number there, or `otherwise` if there is none: a slot that something else has written to fails no task."""
    kind = slot[kind_byte]
    if kind == INT:
        return struct.unpack_from("q", slot, 8 * word)[0]
    if kind == FLOAT:
        number = struct.unpack_from("d", slot, 8 * word)[0]
        return number if isfinite(number) else otherwise
    if kind == BIG:
        return int.from_bytes(slot[8 * word : 8 * word + NUMBER_SIZE], sys.byteorder, signed=True)
    return otherwise


class Updater:
    """What a task reports its progress with, and learns from that it is to stop.

    The executors make one for each task whose function has a parameter called `progress`. `Updater()` counts for
    itself, so that such a function can be called without an executor.

    `n`, `total` and `status` can be read and assigned. n and total are ints of up to 256 bits (OverflowError beyond) or
    finite floats; a status is cut after 256 bytes of UTF-8, never within a character, and a lone surrogate in it becomes
    "?". Once the task is cancelled, whatever counts or publishes raises `asyncio.CancelledError`, each time anew; what it
    was given is stored first. Threads of the task may share its Updater.

    `sub` makes another one, for a part of the task.
    """

    # Three views of the same bytes; _updater_c.pxd has the C types of the fields.
    __slots__ = (
        "__weakref__",
        "_base_mode",
        "_bytes",
        "_changes",
        "_doubles",
        "_lock",
        "_n",
        "_parent",
        "_part",
        "_push",
        "_words",
    )

    _words: memoryview[int]
    _doubles: memoryview[float]
    _bytes: memoryview[int]
    _push: Callable[[bool | None], None] | None
    _base_mode: int
    _n: int  # what the hot path has stored last: interpreted, a field is read faster than a memoryview
    _changes: list[tuple[Any, ...]]
    _part: Any  # its place among the parts of the task, a Counter of _parts.py; None as long as the task had no parts
    _parent: Updater | None

    # Made ready by `__new__`: an `__init__` can be left out, and nothing may read C fields that nobody has set.
    if cython.compiled:

        def __cinit__(self, slot: Any = None, push: Callable[[bool | None], None] | None = None) -> None:
            self._vectorcall = PE_VECTORCALL  # type: ignore[misc]
            self._set_up(slot, push)

    else:

        def __new__(cls, slot: Any = None, push: Callable[[bool | None], None] | None = None) -> Self:
            """Executors pass the slot, a writable buffer of `SLOT_SIZE` bytes, and `push(now)`, called at each step.

            `push(None)` is called where the ring is full.
            """
            self = object.__new__(cls)
            self._set_up(slot, push)
            return self

        def __init_subclass__(cls) -> NoReturn:
            raise TypeError("type 'Updater' is not an acceptable base type")

    def _set_up(self, slot: Any, push: Callable[[bool | None], None] | None) -> None:
        self._lock = RLock()
        self._changes = []
        self._part = None
        self._parent = None
        self._push = push
        self._base_mode = _BASE_MODE if push is None else _BASE_MODE | PUSHING
        if slot is _AWAY:
            self._attach(slot)
            return
        if slot is None:
            slot = bytearray(SLOT_SIZE)
            slot[TOTAL_KIND_BYTE] = NONE
        view = memoryview(slot).cast("B")
        if len(view) < SLOT_SIZE:
            raise ValueError(f"a slot has {SLOT_SIZE} bytes, not {len(view)}")
        self._attach(view)
        self._unlock()

    def _attach(self, view: Any) -> None:
        self._bytes = view
        self._doubles = view.cast("d")
        self._words = view.cast("q")  # last: it is where the hot path looks first

    def _detach(self) -> None:
        """Go on in memory of its own: the slot is about to belong to another task, and threads may still count here."""
        with self._lock:
            self._slot()[MODE_BYTE] |= LOCKED
            self._move_out()

    def _detach_in_child(self) -> None:
        """The same in a forked child: nobody there ends what another thread was in the midst of, or gives the lock back."""
        if cython.compiled:
            updater = cython.declare(Updater)
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            lock, changes = RLock(), type(self._changes)()
            for updater in [self] if self._part is None else self._part.family.updaters():
                updater._lock, updater._changes = lock, changes
        self._move_out()

    def _move_out(self) -> None:
        """Have whoever holds the slot count in a copy of it."""
        own = bytearray(self._slot())
        own[PAUSE_BYTE] = GO  # nobody could have them go on
        own[LISTENS_BYTE] = 0
        slot, part = memoryview(own), self._part
        holder: Any = self if part is None else part.family.attached
        if part is not None:
            part.family.slot = slot
        if holder is not None:
            holder._attach(slot)
        self._unlock()

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

        Raises ValueError for NaN and infinities, TypeError for what is no number, OverflowError beyond 256 bits; nothing
        is added then.
        """
        if cython.compiled:
            step = cython.declare(cython.longlong)
            n = cython.declare(cython.longlong)
            value = cython.declare(cython.double)
            # First the conversion: __index__ may run Python code, and nothing may come between test and store.
            if pe_small(amount, cython.address(step)):
                if self._words[PE_CONTROL] == 0 and pe_add(self._words[PE_N], step, cython.address(n)):
                    self._words[PE_N] = n
                    return
            elif self._words[PE_CONTROL] == _FLOATING_WORD and pe_double(amount, cython.address(value)):
                value += self._doubles[N]
                if isfinite(value):
                    self._doubles[N] = value
                    return
        self._add(amount)

    def _add(self, amount: Any) -> None:
        self._write(step=_number(amount, "amount"))

    # State

    @property
    def n(self) -> int | float:
        """How much is done."""
        with self._lock:
            part = self._part
            n: int | float
            if part is None:
                n = _load(self._bytes, N, N_KIND_BYTE, 0)
            else:
                if not self._changes:  # a signal handler, which may ask in the midst of one, must not undo it
                    self._fetch(part.family.slot)
                n = part.count()
            return n

    @n.setter
    def n(self, value: Any) -> None:
        self._write(_number(value, "n"))

    @property
    def total(self) -> int | float | None:
        """How much there is to do, None where that is unknown. Assigning a negative one is a ValueError."""
        with self._lock:
            total: int | float | None
            total = _load(self._slot(), TOTAL, TOTAL_KIND_BYTE, None) if self._parent is None else self._part.total
            return total

    @total.setter
    def total(self, value: Any) -> None:
        self._write(total=_total(value))

    @property
    def status(self) -> str:
        """The task's own words for what it is doing, "" for none."""
        with self._lock:
            slot = self._slot()
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
        self._publish(True)

    @property
    def cancelled(self) -> bool:
        """Whether the task is to stop."""
        return bool(self._slot()[CALLER_BYTE] == CANCEL)

    def check(self) -> None:
        """Raise `asyncio.CancelledError` if the task is to stop, stand still if it is to do that; count nothing."""
        slot = self._bytes if self._part is None else self._part.family.slot
        if slot[PAUSE_BYTE] == PAUSE:
            self._stand_still()
            slot = self._slot()
        if slot[CALLER_BYTE] == CANCEL:
            raise CancelledError(*self._reason())

    def _stand_still(self) -> None:
        """Return when the caller has the task go on, or stop."""
        with self._lock:
            times = self._slot().cast("d")
            if not times[STANDS_SINCE]:  # of several threads of the task the first one
                times[STANDS_SINCE] = monotonic()
        try:
            wait_while(self._is_to_stand)
        finally:
            with self._lock:
                times = self._slot().cast("d")
                since = times[STANDS_SINCE]
                if since:
                    times[STANDS_SINCE] = 0.0
                    times[STOOD] += max(0.0, monotonic() - since)

    def _is_to_stand(self) -> bool:
        slot = self._slot()
        return bool(slot[PAUSE_BYTE] == PAUSE and slot[CALLER_BYTE] != CANCEL)

    def _reason(self) -> tuple[str, ...]:
        """What the caller gave as the reason for stopping, if anything."""
        fence()  # it was written before the control byte, which has just been read
        slot = self._slot()
        length = min(slot[MESSAGE_LENGTH_BYTE], MESSAGE_SIZE)
        if not length:
            return ()
        return (bytes(slot[MESSAGE_BYTE : MESSAGE_BYTE + length]).decode("utf-8", "replace"),)

    def log(self, text: str) -> None:
        """Have `text` told to the caller's log callbacks, and shown above its bars; cut after 4000 bytes of UTF-8.

        The texts come in the order in which they were said, mostly within 0.1 s. Between two of the caller's looks 8000
        bytes find room, each text with 8 more. Who says more waits, if anybody listens; what finds no room within a second,
        or before anybody listens, is lost, and in its place is told how many were. TypeError if it is no str, RuntimeError
        if this part has ended. `asyncio.CancelledError`, when it was said, if the task is to stop; it does not wait then.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        data = encoded(text, TEXT_SIZE)
        if not self._try_to_say(data, False):
            self._say_in_time(data)
        self._publish(False)

    def _say_in_time(self, data: bytes) -> None:
        """Say it when the caller has made room; if it reads nothing for a second it is busy, and the task goes on."""
        if self._push is not None:
            self._push(None)
        heard: Any = None
        until = 0.0

        def is_to_wait() -> bool:
            nonlocal heard, until
            now, seen = monotonic(), self._slot().cast("q")[HEARD]
            if seen != heard:
                heard, until = seen, now + _PATIENCE
            return not self._try_to_say(data, now >= until)

        wait_while(is_to_wait)

    def _try_to_say(self, data: bytes, gives_up: bool) -> bool:
        """Write it, or count it as lost; False, and neither of them, if it is to wait for room, unless it gives up."""
        with self._lock:  # threads of the task wait for the same room
            slot = self._slot()
            words = slot.cast("q")
            if (
                not _has_room(words, len(data))
                and slot[LISTENS_BYTE]
                and slot[CALLER_BYTE] != CANCEL
                and words[GAVE_UP] != ~words[HEARD]  # else nothing was read since: once is enough
            ):
                if not gives_up:
                    return False
                words[GAVE_UP] = ~words[HEARD]
            self._write(said=data)
        return True

    def close(self) -> None:
        """Publish a last time; a part ends, and counts whole. Never raises, so that it can stand in a `finally`."""
        if self._parent is not None:
            self._end(True)
        elif self._push is not None:
            self._push(True)

    def __enter__(self) -> Self:
        if self._parent is not None and self._part.ended:
            self.check()
            raise RuntimeError(ENDED)
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
        OverflowError beyond 256 bits, RuntimeError if this part has ended, `asyncio.CancelledError` if the task is to stop.
        """
        weight = _number(weight, "weight")
        if weight <= 0:
            raise ValueError(f"weight must be positive, got {weight}")
        total = _total(total)
        _check_size(weight, "weight")
        _check_size(total, "total")
        self.check()
        if cython.compiled:
            updater = cython.declare(Updater)
        updater = Updater(_AWAY)
        updater._lock, updater._changes = self._lock, self._changes
        updater._push, updater._base_mode = self._push, self._base_mode
        with self._lock:
            if self._part is None:
                self._part = Family(self._bytes, self)
            updater._part = Part(self._part, weight, total, updater)
            updater._parent = self
            self._write(act=updater._part.begin)
        return updater

    def _end(self, whole: bool) -> None:
        part = self._part
        self._write(act=lambda: part.end(whole))
        if self._push is not None:
            self._push(False)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "an Updater cannot be pickled or copied, it belongs to the task that it was made for: "
            "leave the parameter called `progress` to the executor"
        )

    # The slot

    def _publish(self, now: bool) -> None:
        if self._push is not None:
            self._push(now)
        self.check()

    def _slot(self) -> Any:
        """The task's, wherever this one counts."""
        return self._bytes if self._part is None else self._part.family.slot

    def _write(
        self,
        n: Any = _KEEP,
        total: Any = _KEEP,
        status: Any = _KEEP,
        step: Any = _KEEP,
        act: Any = None,
        said: Any = _KEEP,
    ) -> None:
        """Set the given fields, or add `step` to n, in one: a reader sees all of the change or nothing of it.

        Or `act`, which changes what parts the task has; that publishes nothing, nor does what is `said`.
        """
        with self._lock:
            if self._changes:  # a signal handler or a finalizer in the midst of what follows, which sees to its change, too
                self._changes.append((self, n, total, status, step, act, said))
                return
            try:
                self._changes.append((self, n, total, status, step, act, said))
                # First turn the hot path of other threads away, then read: what they have added until then is read, too.
                slot = self._bytes if self._part is None else self._part.family.slot
                slot[MODE_BYTE] |= LOCKED
                while self._changes:
                    updater, *change = self._changes[0]
                    updater._put(*change)
                    del self._changes[0]
            finally:
                self._changes.clear()
                self._unlock()
        if act is None and said is _KEEP:
            self._publish(False)

    def _unlock(self) -> None:
        if cython.compiled:
            holder = cython.declare(Updater)
        holder = self
        if self._part is not None:
            family = self._part.family
            if self._bytes is _AWAY:
                holder = family.attached
            if not family.settled or holder is None or holder._bytes is not family.slot:
                return
        kind = holder._bytes[N_KIND_BYTE]
        holder._n = holder._words[N]
        holder._bytes[MODE_BYTE] = holder._base_mode | (FLOATING if kind == FLOAT else WIDE if kind == BIG else 0)

    def _put(self, n: Any, total: Any, status: Any, step: Any, act: Any, said: Any) -> None:
        if cython.compiled:
            words = cython.declare(cython.longlong[::1])
        part, heir = self._part, None
        # The one that holds the slot needs to know of no others to count: in the sync executor each step comes here.
        alone = part is None or (
            self._bytes is not _AWAY
            and act is None
            and total is _KEEP
            and part.family.settled
            and (n is _KEEP or not part.parts)
        )
        slot = self._bytes if part is None else part.family.slot
        # Made apart and stored in one, so that an exception at any moment (Ctrl-C) leaves nothing half written.
        record = bytearray(slot[:RECORD_END])
        if not alone:
            heir = self._share(record, n, total, step, act)
        else:
            if step is not _KEEP:
                n = _load(slot, N, N_KIND_BYTE, 0) + step
            elif part is not None and n is not _KEEP:
                part.rest = 0
            if n is not _KEEP:
                _store(record, N, N_KIND_BYTE, n, "n")
            if total is not _KEEP:
                _store(record, TOTAL, TOTAL_KIND_BYTE, total, "total")
        if status is not _KEEP:
            text = encoded(status, STATUS_SIZE)
            record[STATUS_LENGTH_BYTE : STATUS_LENGTH_BYTE + 2] = len(text).to_bytes(2, "little")
            record[STATUS_BYTE : STATUS_BYTE + len(text)] = text
        words = self._words if part is None else slot.cast("q")
        if said is not _KEEP:
            _say(slot, said)
        sequence = words[SEQUENCE] | 1
        try:
            words[SEQUENCE] = sequence
            fence()
            slot[RECORD_BYTE:RECORD_END] = record[RECORD_BYTE:RECORD_END]
            fence()
        finally:
            words[SEQUENCE] = sequence + 1
        if not alone:
            family = part.family
            if heir is not family.holder:
                # In this order: see the invariant of _parts.py.
                family.holder = heir
                updater = family.attached
                if updater is not None:
                    updater._attach(slot)
            family.settled = True

    def _fetch(self, slot: Any) -> None:
        """Have the part that holds the slot know how far it is."""
        holder = self._part.family.holder
        if holder is not None:
            holder.n = _load(slot, N, N_KIND_BYTE, 0)

    def _share(self, record: bytearray, n: Any, total: Any, step: Any, act: Any) -> Any:
        """What `_put` does to n and total where the task has parts; returns which of them has the slot from then on."""
        part = self._part
        family = part.family
        holder, attached = family.holder, family.attached
        self._fetch(record)
        # Until `_put` has stored it: where an interrupt keeps it from that, nobody may count past what is not in the slot.
        settled, family.settled = family.settled and act is None and total is _KEEP, False
        if act is not None:
            act()
        elif part.ended:
            self.check()
            raise RuntimeError(ENDED)
        rest = part.rest
        if step is not _KEEP:
            n = part.n + step
        elif n is not _KEEP:
            n, rest = part.assigned(n)
        if n is not _KEEP:
            _store(record, N, N_KIND_BYTE, n, "n")  # before anything is changed, as it may raise
        if total is not _KEEP:
            if part is family:
                _store(record, TOTAL, TOTAL_KIND_BYTE, total, "total")
            else:
                _check_size(total, "total")
                part.total = total
        if n is not _KEEP:
            part.n, part.rest = n, rest
        heir = heir_of(part if n is not _KEEP or holder is None else holder)
        _store(record, N, N_KIND_BYTE, heir.n, "n")
        if heir is not holder or not settled:
            record[PART_BYTE], *scale = family.shown(heir)
            struct.pack_into("4d", record, 8 * SCALE, *scale)
        if heir is not holder:
            if attached is not None:
                attached._attach(_AWAY)
            family.holder = None
        return heir


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
                n = cython.declare(cython.longlong)
                if self._updater._words[PE_CONTROL] == 0 and pe_add(self._updater._words[PE_N], 1, cython.address(n)):
                    self._updater._words[PE_N] = n
                else:
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
                words = updater._words  # looked up at every step: see _detach
                try:
                    if not words[CONTROL]:
                        n = updater._n + 1
                        words[N] = n
                        updater._n = n
                        continue
                except ValueError:  # more than 64 bits
                    pass
                updater._add(1)


def _update(updater: Updater, amount: Any) -> Any:
    return updater.update(amount)


if cython.compiled:
    assert (PE_CONTROL, PE_N) == (CONTROL, N)
    _any = cython.declare(Updater, Updater())
    pe_make_vectorcallable(_any, cython.address(_any._vectorcall), cython.cast(cython.p_void, _update))


def _interpreted_update(self: Updater, amount: Any = 1) -> None:
    # The GIL is offered at calls and backward jumps only (CPython 3.11 to 3.13): nothing comes between the test
    # of the control word and the store.
    words = self._words
    if words[CONTROL] == 0:
        if amount.__class__ is int:
            try:
                words[N] = self._n = self._n + amount
                return
            except ValueError:  # more than 64 bits
                pass
    elif words[CONTROL] == _FLOATING_WORD and type(amount) is float:
        doubles = self._doubles
        total = doubles[N] + amount
        if total - total == 0.0 and words[CONTROL] == _FLOATING_WORD:  # isfinite() would be a call
            doubles[N] = total
            return
    self._add(amount)


if not cython.compiled:
    # In a function of its own it need not ask, at each call, which form it is.
    _interpreted_update.__doc__ = Updater.update.__doc__
    _interpreted_update.__name__ = "update"
    _interpreted_update.__qualname__ = "Updater.update"
    Updater.update = _interpreted_update  # type: ignore[method-assign]
